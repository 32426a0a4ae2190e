"""Geometric input of MapAnything (arXiv 2509.13414): known intrinsics as a map of viewing rays.

Shape legend: N views, H, W pixels, h, w patch grid, E width.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from vla_geometry.mapanything.blocks import EPS
from vla_geometry.mapanything.sizes import PATCH


class ResidualConv(nn.Module):
    """Two 3 x 3 convolutions over the patch grid with a shortcut; a GELU between and after."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv2(F.gelu(self.conv1(x))) + self.shortcut(x))


class RayEncoder(nn.Module):
    """Unit rays ``[N, 3, H, W]`` -> one token per patch ``[N, h * w, E]``, normalised."""

    def __init__(self, width: int, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(PATCH)
        self.conv_in = nn.Conv2d(3 * PATCH**2, dims[0], 3, padding=1)
        self.encoder = nn.Sequential(
            *(ResidualConv(a, b) for a, b in pairwise(dims)), nn.Conv2d(dims[-1], width, 1)
        )
        self.norm_layer = nn.LayerNorm(width, eps=EPS)

    def forward(self, rays: Tensor) -> Tensor:
        x = self.encoder(self.conv_in(self.unshuffle(rays)))
        return self.norm_layer(x.flatten(2).transpose(1, 2))
