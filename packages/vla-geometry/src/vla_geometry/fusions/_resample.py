"""Geometry on another patch grid, view by view.

Shape legend: B rows, V views, h', w' geometry grid, C geometry channels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resample(tokens_BVhwC: Tensor, height: int, width: int) -> Tensor:
    """Bilinear per view: ``[B, V, h', w', C]`` -> ``[B, V, height, width, C]``."""
    b, v, h, w, _ = tokens_BVhwC.shape
    if (h, w) == (height, width):
        return tokens_BVhwC
    maps = tokens_BVhwC.flatten(0, 1).permute(0, 3, 1, 2).float()
    shrinks = height < h or width < w
    maps = F.interpolate(maps, size=(height, width), mode="bilinear", antialias=shrinks)
    return maps.permute(0, 2, 3, 1).unflatten(0, (b, v)).to(tokens_BVhwC.dtype)
