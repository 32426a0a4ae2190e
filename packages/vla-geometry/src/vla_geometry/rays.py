"""Known intrinsics as an input: the viewing ray of each pixel (MapAnything, arXiv 2509.13414).

Shape legend: B rows, V views, H, W pixels, h, w patch grid, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.errors import UserError


def pinhole_rays(
    intrinsics: Tensor, image_size: tuple[int, int], given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rays with z = 1 through the pixel centres, in camera axes (x right, y down, z forward).

    Args:
        intrinsics: ``[B, V, 3, 3]`` pinhole matrices in pixels; the centre of the top-left pixel is
            at (0.5, 0.5).
        image_size: (H, W).
        given: bool ``[B, V]``, the views whose intrinsics are known (``Cameras.known``); None: all.

    Returns:
        rays fp32 ``[B, V, 3, H, W]``, and bool ``[B, V]``: which views have usable intrinsics
        (known, finite, positive focal lengths). The rays of the others mean nothing, but are finite.
    """
    if intrinsics.ndim != 4 or tuple(intrinsics.shape[2:]) != (3, 3):
        raise UserError(f"cameras.intrinsics: shape {list(intrinsics.shape)} must be [B, V, 3, 3]")
    matrix = intrinsics.float()
    known = matrix.isfinite().all(dim=(-1, -2)) & (matrix[..., 0, 0] > 0) & (matrix[..., 1, 1] > 0)
    if given is not None:
        known = known & given
    # Unknown views get a harmless matrix first: a NaN would survive masking in the gradient.
    matrix = torch.where(known[..., None, None], matrix, torch.eye(3, device=matrix.device))
    fx, skew, cx, fy, cy = (
        matrix[..., i, j, None, None] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))
    )
    v = torch.arange(image_size[0], device=matrix.device, dtype=torch.float32)[:, None] + 0.5
    u = torch.arange(image_size[1], device=matrix.device, dtype=torch.float32)[None, :] + 0.5
    y = ((v - cy) / fy).expand(*known.shape, *image_size)
    x = (u - cx - skew * y) / fx
    return torch.stack([x, y, torch.ones_like(x)], dim=2), known


def ray_directions(
    intrinsics: Tensor, image_size: tuple[int, int], given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`pinhole_rays`, but of unit length, and zero in views without usable intrinsics."""
    rays, known = pinhole_rays(intrinsics, image_size, given)
    return torch.where(known[..., None, None, None], F.normalize(rays, dim=2), 0.0), known


class RayEncoder(nn.Module):
    """Rays ``[B, V, 3, H, W]`` -> one token per patch ``[B, V, h * w, C]``."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.mlp = nn.Sequential(nn.GELU(), nn.Linear(dim, dim))

    def forward(self, rays: Tensor) -> Tensor:
        tokens = self.embed(rays.flatten(0, 1).to(self.embed.weight.dtype)).flatten(2).transpose(1, 2)
        return self.mlp(tokens).unflatten(0, rays.shape[:2])
