"""The norms of :mod:`vla_heads.few_rows` on a GPU: a program for each row."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

AHEAD = True
"""Start before the kernel in front is done."""


@triton.jit
def _norm(
    x, scale, shift, out, scale_stride, shift_stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr, OFFSET: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    if AHEAD:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    there = at < WIDTH
    y = tl.load(x + row * WIDTH + at, mask=there, other=0.0).to(tl.float32)
    if CENTRED:
        y = tl.where(there, y - tl.sum(y) / WIDTH, 0.0)
    y = y * tl.rsqrt(tl.sum(y * y) / WIDTH + eps)
    if SCALE:
        y = y * (tl.load(scale + row * scale_stride + at, mask=there, other=0.0).to(tl.float32) + OFFSET)
    if SHIFT:
        y += tl.load(shift + row * shift_stride + at, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + at, y.to(out.dtype.element_ty), mask=there)


def normed(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    centred: bool,
    offset: float,
    ahead: bool | None = None,
) -> Tensor:
    """``y * (scale + offset) + shift`` in float32, rounded once; ``y`` is ``x`` over its root mean square.

    Args:
        x: ``[M, W]``, contiguous.
        scale: ``[M, W]``, or ``[1, W]`` for all rows; rows may lie apart.
        shift: likewise.
        eps: added to the mean square.
        centred: take the mean of ``x`` away first.
        offset: of the scale.
        ahead: start before the kernel in front is done; None: as ``AHEAD`` says.
    """
    rows, width = x.shape
    out = x.new_empty(rows, width)
    ahead = AHEAD if ahead is None else ahead
    launch: Any = _norm[(rows,)]
    launch(
        x, x if scale is None else scale, x if shift is None else shift, out, _stride(scale), _stride(shift),
        eps,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), CENTRED=centred, OFFSET=offset,
        SCALE=scale is not None, SHIFT=shift is not None, AHEAD=ahead,
        num_warps=8 if width >= 2048 else 4, launch_pdl=ahead,
    )  # fmt: skip
    return out


def _stride(by: Tensor | None) -> int:
    return 0 if by is None or by.shape[0] == 1 else by.stride(0)
