"""Metric points, one per patch: of depth and intrinsics, or of the points of all pixels.

Shape legend: B rows, V views, H, W pixels, h, w patch grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from vla_core.batch import Known

from vla_geometry.rays import pinhole_rays


def patch_points(
    depth_BVHW: Tensor,
    intrinsics: Tensor,
    extrinsics: Tensor | None,
    grid: tuple[int, int],
    given: Known | None = None,
) -> tuple[Tensor, Tensor]:
    """The mean point of each patch.

    Args:
        depth_BVHW: metres along the optical axis; not finite or not positive is no measurement.
        intrinsics: ``[B, V, 3, 3]`` pixels of the depth image.
        extrinsics: camera-to-world ``[B, V, 4, 4]``, or None: points stay in each camera's own frame.
        grid: (h, w) patches that cover the image.
        given: which views have a depth, intrinsics and (where they are applied) extrinsics; None: all.

    Returns:
        points fp32 ``[B, V, h, w, 3]`` metres, and bool ``[B, V, h, w]``: patches with at least one
        measurement in a view whose depth, intrinsics and extrinsics are known and usable. The points of
        the others are zero.
    """
    depth = depth_BVHW.float()
    given = given or Known()
    rays, usable = pinhole_rays(intrinsics, (depth.shape[2], depth.shape[3]), given.intrinsics)
    if given.depth is not None:
        usable = usable & given.depth
    measured = depth.isfinite() & (depth > 0) & usable[..., None, None]
    if extrinsics is not None:
        pose = extrinsics.float()
        # A pose that is not finite is no pose; where, because 0 * NaN is NaN.
        posed = pose.isfinite().all(dim=(-1, -2))
        if given.extrinsics is not None:
            posed = posed & given.extrinsics
        measured = measured & posed[..., None, None]
        pose = pose.where(posed[..., None, None], 0.0)
    mean, known = _patch_means(rays * depth.where(measured, 0.0)[:, :, None], measured, grid)
    if extrinsics is not None:
        # A pose is affine: moving the mean is the mean of moved points. Spelled out, because autocast would
        # round a matrix product to bf16, which is centimetres.
        rotation, shift = pose[:, :, None, None, :3, :3], pose[:, :, None, None, :3, 3]
        mean = (rotation * mean[..., None, :]).sum(dim=-1) + shift
    return mean.where(known[..., None], 0.0), known


def pool_points(points_BVHW3: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean points of patches, of points ``[B, V, H, W, 3]`` in any frame; returns as :func:`patch_points`."""
    points = points_BVHW3.float().permute(0, 1, 4, 2, 3)
    finite = points.isfinite().all(dim=2)
    mean, known = _patch_means(points.where(finite[:, :, None], 0.0), finite, grid)
    return mean.where(known[..., None], 0.0), known


def _patch_means(points_BV3HW: Tensor, measured_BVHW: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean over the measured pixels ``[B, V, h, w, 3]``, and bool ``[B, V, h, w]``: where there are any."""
    weight = measured_BVHW.float()[:, :, None]
    pooled = F.adaptive_avg_pool2d(torch.cat([points_BV3HW * weight, weight], dim=2).flatten(0, 1), grid)
    pooled = pooled.unflatten(0, measured_BVHW.shape[:2]).permute(0, 1, 3, 4, 2)
    share = pooled[..., 3:]
    known = share[..., 0] > 0
    return pooled[..., :3] / share.where(known[..., None], 1.0), known
