"""Per-view encoder: DINOv2 (arXiv 2304.07193) without register tokens, possibly cut after some blocks.

Shape legend: N images, H, W pixels, h, w patch grid, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_geometry.mapanything.blocks import EPS, Block
from vla_geometry.mapanything.sizes import PATCH, Architecture

# DINOv2's position embeddings were always resampled by the factor (size + 0.1) / grid instead of to a
# size; the shift this makes is small, but features of the published weights depend on it.
OFFSET = 0.1


class PatchEmbed(nn.Module):
    """Images ``[N, 3, H, W]`` -> tokens ``[N, h * w, E]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Dinov2(nn.Module):
    """Normalised images ``[N, 3, H, W]`` -> patch tokens ``[N, h * w, E]`` and class token ``[N, 1, E]``."""

    def __init__(self, size: Architecture) -> None:
        super().__init__()
        width = size.encoder_dim
        self.grid = size.grid
        self.patch_embed = PatchEmbed(width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + size.grid**2, width))
        self.blocks = nn.ModuleList(
            Block(width, size.encoder_heads, size.swiglu, layer_scale=1.0) for _ in range(size.encoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=EPS) if size.encoder_norm else nn.Identity()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h, w = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], dim=1)
        x = x + self.positions(h, w)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 1:], x[:, :1]

    def positions(self, h: int, w: int) -> Tensor:
        """Position embeddings for a grid ``[1, 1 + h * w, E]``, the class token's first."""
        if (h, w) == (self.grid, self.grid):
            return self.pos_embed
        table = self.pos_embed[0, 1:].float().unflatten(0, (self.grid, self.grid))
        patches = _resample(_resample(table, h).transpose(0, 1), w).transpose(0, 1)
        return torch.cat([self.pos_embed[:, :1], patches.flatten(0, 1)[None].to(self.pos_embed.dtype)], dim=1)


def _resample(table_yxE: Tensor, size: int) -> Tensor:
    """Bicubic along the first axis.

    One axis at a time, with all else laid out as the width of one picture: the GPU's kernel has a thread for
    each place, which goes through the channels alone, so a small map of wide tokens would leave it idle.
    """
    rows, _, width = table_yxE.shape
    picture = table_yxE.reshape(1, 1, rows, -1)
    factor = ((size + OFFSET) / rows, 1.0)
    return F.interpolate(picture, scale_factor=factor, mode="bicubic").view(size, -1, width)
