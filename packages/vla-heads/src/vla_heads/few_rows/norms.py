"""Norms before the products of few rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_heads.few_rows import when


class StreamedNorm(nn.LayerNorm):
    """A layer norm that :func:`norm` may compute by the kernel for few rows; by itself a plain one."""


def norm(layer: nn.Module, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """``layer(x)``, or with both ``layer(x) * (1 + scale) + shift``, broadcast against ``x``.

    Args:
        layer: a layer norm, with parameters of its own or with ``scale`` and ``shift``.
        x: ``[..., W]``.
        scale, shift: ``[..., W]``.
    """
    if isinstance(layer, StreamedNorm) and when.few(x):
        flat = x.reshape(-1, x.shape[-1])
        if scale is None or shift is None:
            return _norm(flat, _row(layer.weight), _row(layer.bias), layer.eps, True, 0.0).view_as(x)
        return _norm(flat, _rows(scale, x), _rows(shift, x), layer.eps, True, 1.0).view_as(x)
    y: Tensor = layer(x)
    return y if scale is None or shift is None else y * (1 + scale) + shift


def rms_norm(x: Tensor, scale: Tensor, shift: Tensor | None, eps: float, streamed: bool) -> Tensor:
    """``x`` over its root mean square, times ``1 + scale``, plus ``shift``; in float32.

    Args:
        x: ``[..., W]``.
        scale, shift: ``[..., W]``, broadcast against it.
        eps: added to the mean square.
        streamed: by the kernel for few rows, where ``x`` is what it takes.
    """
    if streamed and when.few(x):
        by = None if shift is None else _rows(shift, x)
        return _norm(x.reshape(-1, x.shape[-1]), _rows(scale, x), by, eps, False, 1.0).view_as(x)
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + eps) * (1.0 + scale.float())
    return (y if shift is None else y + shift.float()).to(x.dtype)


def _row(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter[None]


def _rows(by: Tensor, x: Tensor) -> Tensor:
    """``[M, W]``, or ``[1, W]`` where it is the same for all rows of ``x``."""
    width = x.shape[-1]
    return by.reshape(1, width) if by.numel() == width else by.expand(x.shape).reshape(-1, width)


@torch.library.custom_op("vla_heads::few_rows_norm", mutates_args=())
def _norm(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, centred: bool, offset: float
) -> Tensor:
    """See :func:`vla_heads.few_rows.norm_kernel.normed`."""
    from vla_heads.few_rows.norm_kernel import normed

    if scale is not None and scale.stride(-1) != 1:
        scale = scale.contiguous()
    if shift is not None and shift.stride(-1) != 1:
        shift = shift.contiguous()
    with torch.cuda.device_of(x):
        return normed(x.contiguous(), scale, shift, eps, centred, offset)


@_norm.register_fake
def _(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, centred: bool, offset: float
) -> Tensor:
    return x.new_empty(x.shape)
