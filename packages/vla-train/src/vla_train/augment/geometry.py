"""Crop and rotation of views, with the cameras following. Shapes: B rows, V views, H, W pixels.

A rotation is a roll of the camera about its optical axis, ``p' = K Rz K^-1 p``: exact for pixels of any
aspect ratio (a picture stretched to a square has two focal lengths), and neither the pinhole matrix nor depth
along the axis changes by it, only the pose. The crop then scales and moves the pinhole matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from vla_core.batch import Cameras


@dataclass(frozen=True)
class Move:
    """Where the pixels of each view go.

    Args:
        to_source: ``[B, V, 2, 3]`` from pixels of the new picture to those of the old, the corner of the
            first at (0, 0).
        crop: ``[B, V, 3, 3]`` by which pinhole matrices change.
        roll: ``[B, V, 3, 3]`` from the old camera's axes to the new one's.
    """

    to_source: Tensor
    crop: Tensor
    roll: Tensor


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product without a matrix unit, which may round to fewer bits (TF32, autocast)."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def _matrix(*entries: Tensor) -> Tensor:
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def _boxes(
    share: Tensor, ratio: Tensor, x: Tensor, y: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Crops as matrices ``[..., 3, 3]`` to the new picture and back."""
    h, w = size
    wide, high = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
    left, top = x * (1 - wide) * w, y * (1 - high) * h
    one, nil = torch.ones_like(wide), torch.zeros_like(wide)
    there = _matrix(1 / wide, nil, -left / wide, nil, 1 / high, -top / high, nil, nil, one)
    return there, _matrix(wide, nil, left, nil, high, top, nil, nil, one)


def make_move(
    angle: Tensor,
    share: Tensor,
    ratio: Tensor,
    place: tuple[Tensor, Tensor],
    size: tuple[int, int],
    cameras: Cameras | None,
) -> Move:
    """The move of each view, all arguments ``[B, V]``.

    Args:
        angle: radians of the roll.
        share: of the area that the crop keeps.
        ratio: of the crop's width to its height, over that of the picture.
        place: of the crop along x and y, from 0 to 1.
        size: (H, W).
        cameras: with intrinsics where they are known.
    """
    h, w = size
    crop, uncrop = _boxes(share, ratio, *place, size)
    one, nil = torch.ones_like(angle), torch.zeros_like(angle)
    pinhole = _matrix(one, nil, one * w / 2, nil, one, one * h / 2, nil, nil, one)
    if cameras is not None and cameras.intrinsics is not None:
        given = cameras.intrinsics.float()
        # A view that is missing has zeros, which no camera has.
        known = (given[..., 0, 0] != 0) & (given[..., 1, 1] != 0)
        if cameras.known.intrinsics is not None:
            known = known & cameras.known.intrinsics
        pinhole = torch.where(known[..., None, None], given, pinhole)
    cos, sin = angle.cos(), angle.sin()
    roll = _matrix(cos, -sin, nil, sin, cos, nil, nil, nil, one)
    inverse = torch.linalg.inv_ex(pinhole).inverse  # inv would wait for the device to check it
    back = _times(_times(pinhole, roll.mT), inverse)
    return Move(_times(back, uncrop)[..., :2, :], crop, roll)


def _grid(move: Move, size: tuple[int, int]) -> Tensor:
    """``[B V, H, W, 2]`` for ``grid_sample``: where each new pixel's centre lies in the old picture."""
    h, w = size
    m = move.to_source.flatten(0, 1)[..., None, None]
    x = torch.arange(w, device=m.device, dtype=torch.float32) + 0.5
    y = (torch.arange(h, device=m.device, dtype=torch.float32) + 0.5)[:, None]
    across, down = (m[:, i, 0] * x + m[:, i, 1] * y + m[:, i, 2] for i in range(2))
    return torch.stack([across * (2 / w) - 1, down * (2 / h) - 1], -1)


def move_images(images: Tensor, move: Move) -> Tensor:
    """Float ``[B, V, C, H, W]`` in one pass, bilinear; beyond the border its pixels are repeated."""
    size = (images.shape[-2], images.shape[-1])
    grid = _grid(move, size)
    moved = grid_sample(images.flatten(0, 1), grid, "bilinear", "border", align_corners=False)
    return moved.view_as(images)


def move_cameras(cameras: Cameras, move: Move) -> Cameras:
    """The cameras that took the new pictures. Depth is that of the nearest pixel, and 0 beyond the border."""
    depth, intrinsics, extrinsics = cameras.depth, cameras.intrinsics, cameras.extrinsics
    if depth is not None:
        grid = _grid(move, (depth.shape[-2], depth.shape[-1]))
        flat = depth.flatten(0, 1)[:, None]
        depth = grid_sample(flat, grid, "nearest", "zeros", align_corners=False).view_as(depth)
    if intrinsics is not None:
        intrinsics = _times(move.crop, intrinsics)
    if extrinsics is not None:
        turned = _times(extrinsics[..., :3], move.roll.mT)
        extrinsics = torch.cat([turned, extrinsics[..., 3:]], -1)
    return replace(cameras, depth=depth, intrinsics=intrinsics, extrinsics=extrinsics)
