"""A convolutional patch embedding for training from scratch on few demonstrations.

Strided convolutions instead of one linear map a patch: early convolutions make small vision
transformers train faster and more stably (Xiao et al., arXiv 2106.14881), and their overlapping
receptive fields keep positions finer than a patch. Two channels of coordinates are added (CoordConv,
Liu et al., arXiv 1807.03247), because nothing else in this model knows absolute positions.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from vla_core.errors import ConfigError


class ConvStem(nn.Module):
    """``[M, 3, H, W]`` -> ``[M, N, width]``, one token per ``patch_size`` square, in merged order.

    Args:
        width: hidden size of the vision transformer.
        patch_size: total stride, a power of two.
        merge: patches a side of a merged token, which are neighbours in the output.
    """

    def __init__(self, width: int, patch_size: int, merge: int) -> None:
        super().__init__()
        steps = int(math.log2(patch_size))
        if 2**steps != patch_size or steps < 1:
            raise ConfigError(
                f"vision: conv_vit needs tiny.patch_size to be a power of two, got {patch_size}"
            )
        self.merge = merge
        # Doubling up to 128: every stage but the first costs the same.
        channels = [5, *(max(8, 128 >> (steps - 1 - i)) for i in range(steps))]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            ]
        last = channels[-1]
        layers += [nn.Conv2d(last, last, 3, padding=1, bias=False), nn.GroupNorm(8, last), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(last, width, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Float images; the result is in the order :func:`~vla_vlm.common.pixels.patchify` gives."""
        m, _, height, width = images.shape
        # Where a pixel is, in [-1, 1]: rotary positions are relative, an arm's target is not.
        y = torch.linspace(-1, 1, height, dtype=images.dtype, device=images.device)
        x = torch.linspace(-1, 1, width, dtype=images.dtype, device=images.device)
        place = torch.stack([y[:, None].expand(height, width), x.expand(height, width)])
        x = self.layers(torch.cat([images, place.expand(m, -1, -1, -1)], dim=1))
        _, c, h, w = x.shape
        k = self.merge
        tokens = x.permute(0, 2, 3, 1).reshape(m, h // k, k, w // k, k, c).transpose(2, 3)
        return tokens.reshape(m, h * w, c).contiguous()
