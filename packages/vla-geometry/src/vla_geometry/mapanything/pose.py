"""Camera poses of MapAnything, in the first camera's frame (a head as in Reloc3r, arXiv 2412.08376).

Module names are those of the published weights. Shape legend: B rows, V views, N = B V, h, w patch grid,
C width of the features, P width of the head, H, W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_geometry.mapanything.sizes import PATCH

WIDTH = 4 * PATCH**2


class ResidualStack(nn.Module):
    """Three 1 x 1 convolutions with ReLU and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.res_conv1, self.res_conv2, self.res_conv3 = (nn.Conv2d(width, width, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.res_conv2(F.relu(self.res_conv1(x))))
        return x + F.relu(self.res_conv3(y))


class PoseHead(nn.Module):
    """Features ``[B, V, h, w, C]`` -> rotation ``[B, V, 3, 3]`` and position ``[B, V, 3]``, both fp32.

    They take points of a view to the frame of the first one; positions are in the units of the scene, as
    distances are before the scale token makes metres of them.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, WIDTH, 1)
        self.res_conv = nn.ModuleList(ResidualStack(WIDTH) for _ in range(2))
        self.more_mlps = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.fc_t = nn.Linear(WIDTH, 3)
        self.fc_rot = nn.Linear(WIDTH, 4)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        b, v = tokens.shape[:2]
        x = self.proj(tokens.flatten(0, 1).permute(0, 3, 1, 2).to(self.fc_t.weight.dtype).contiguous())
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean(dim=(2, 3)))
        rotation = rotation_matrix(self.fc_rot(x).float())
        return rotation.unflatten(0, (b, v)), self.fc_t(x).float().unflatten(0, (b, v))


def rotation_matrix(quaternion: Tensor) -> Tensor:
    """Rotations ``[..., 3, 3]`` of quaternions ``[..., 4]`` (x, y, z, w) of any length but zero."""
    x, y, z, w = F.normalize(quaternion, dim=-1, eps=1e-8).unbind(dim=-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def to_first_camera(points_BV3HW: Tensor, rotation: Tensor, position: Tensor) -> Tensor:
    """Points in each camera's axes to the first one's: ``[B, V, H, W, 3]``."""
    # Spelled out: a matrix product might be rounded (TF32, autocast), which is centimetres.
    turned = (rotation[..., None, None] * points_BV3HW[:, :, None]).sum(dim=3)
    return (turned + position[..., None, None]).permute(0, 1, 3, 4, 2)
