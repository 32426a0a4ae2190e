"""What ``geo_loss`` reconstructs: one vector or one depth for each image token of the backbone.

Shape legend: B rows, V views, h, w the backbone's grid of a view, N = V h w, C geometry channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def token_targets(tokens_BVHWC: Tensor, grid: tuple[int, int]) -> Tensor:
    """Geometry tokens ``[B, V, h', w', C]`` on the backbone's grid, each normalised: fp32 ``[B, N, C]``.

    Without gradient. Normalised, because the scale of a frozen encoder's channels is arbitrary.
    """
    b, v, _, _, c = tokens_BVHWC.shape
    x = tokens_BVHWC.detach().float().flatten(0, 1).permute(0, 3, 1, 2)
    if tuple(x.shape[2:]) != grid:
        x = F.interpolate(x, grid, mode="bilinear", align_corners=False, antialias=True)
    x = x.permute(0, 2, 3, 1).reshape(b, v * grid[0] * grid[1], c)
    return F.layer_norm(x, (c,))


def depth_targets(
    depth_BVHW: Tensor, grid: tuple[int, int], given_BV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean log depth of each patch, and where there is any.

    Args:
        depth_BVHW: metres; not finite or not positive is no measurement.
        grid: (h, w).
        given_BV: bool, the views that have a depth (``Cameras.known``); None: all.

    Returns:
        fp32 ``[B, N, 1]`` (0 without a measurement) and bool ``[B, N]``.
    """
    depth = depth_BVHW.float()
    measured = depth.isfinite() & (depth > 0)
    if given_BV is not None:
        measured = measured & given_BV[..., None, None]
    logs = depth.where(measured, 1.0).log()
    pooled = F.adaptive_avg_pool2d(torch.stack([logs, measured.float()], dim=2).flatten(0, 1), grid)
    pooled = pooled.unflatten(0, depth.shape[:2]).permute(0, 1, 3, 4, 2).flatten(1, 3)
    share = pooled[..., 1]
    known = share > 0
    return (pooled[..., 0] / share.where(known, 1.0))[..., None], known
