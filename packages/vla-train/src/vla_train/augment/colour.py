"""Colour jitter as one affine map of each view's RGB. Shapes: B rows, V views, H, W pixels.

Brightness scales, contrast blends with the mean grey, saturation with each pixel's own grey, and hue turns
the plane of YIQ that is orthogonal to luma (the hue control of NTSC), so the four are one 3 x 3 matrix and an
offset, and values are clipped once.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
_TO_YIQ = (_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def recolour(images: Tensor, factors: Tensor, turn: Tensor) -> Tensor:
    """Float ``[B, V, 3, H, W]``, not clipped.

    Args:
        images: linear in any unit.
        factors: ``[B, V, 3]`` of brightness, contrast and saturation; 1 changes nothing.
        turn: ``[B, V]`` of the hue, in radians.
    """
    luma = torch.tensor(_LUMA).to(images.device, non_blocking=True)
    brightness, contrast, saturation = (f[..., None, None] for f in factors.unbind(-1))
    saturate = saturation * torch.eye(3, device=images.device) + (1 - saturation) * luma
    mix = brightness * contrast * _times(saturate, _hue(turn))
    grey = (images.mean((-2, -1)) * luma).sum(-1)[..., None, None]
    offset = (1 - contrast) * brightness * grey
    out = torch.empty_like(images)
    for c in range(3):
        weights = mix[..., c, :, None, None]
        out[..., c, :, :] = offset + (images * weights).sum(-3)
    return out


def _hue(turn: Tensor) -> Tensor:
    """``[..., 3, 3]`` on RGB."""
    exact = torch.tensor(_TO_YIQ, dtype=torch.float64)
    there, back = (m.to(turn, non_blocking=True) for m in (exact, torch.linalg.inv(exact)))
    cos, sin, nil = turn.cos(), turn.sin(), torch.zeros_like(turn)
    one = torch.ones_like(turn)
    rotate = torch.stack([one, nil, nil, nil, cos, -sin, nil, sin, cos], -1).unflatten(-1, (3, 3))
    return _times(_times(back.expand_as(rotate), rotate), there.expand_as(rotate))


def _times(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)
