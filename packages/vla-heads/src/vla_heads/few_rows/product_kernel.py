"""The products of :mod:`vla_heads.few_rows` on a GPU: every multiprocessor streams its part of the weight.

A product with 49 rows computes next to nothing; its time is that of reading the weight once. So the inner
dim is split over programs as well, until there are enough of them to keep the memory busy: each writes the
sums of its part, and the last of a tile to be done adds them up, always in the same order.

What is asked of the weight ahead (``AHEAD``) goes to the second-level cache before the program waits for the
kernel in front of it, which may still run (programmatic dependent launch).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from vla_heads.few_rows.plans import MOST_ROWS, Plan

LINE = 64
"""Numbers of two bytes in a line of the cache."""


@triton.jit
def _fetch(at):
    """Lines of global memory into the second-level cache; nothing waits for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [at.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _gelu(x):
    """The approximation by tanh, which is a logistic function of twice the argument."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def _sum(slots, there, SPLIT: tl.constexpr, SIZE: tl.constexpr):
    """Parts of a tile in their order; past the first-level cache, which knows nothing of other programs."""
    total = tl.load(slots, mask=there, other=0.0, cache_modifier=".cg")
    for part in tl.static_range(1, SPLIT):
        total += tl.load(slots + part * SIZE, mask=there, other=0.0, cache_modifier=".cg")
    return total


@triton.jit
def _finish(
    y, y2, m, n, rows, bias, residual, gate, gate_stride, out, N: tl.constexpr,
    BIAS: tl.constexpr, GELU: tl.constexpr, PAIRED: tl.constexpr, GATE: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    if BIAS:
        y += tl.load(bias + n).to(tl.float32)[None, :]
    if GELU:
        y = _gelu(y)
    if PAIRED:
        if BIAS:
            y2 += tl.load(bias + N + n).to(tl.float32)[None, :]
        y = y * y2
    there = (m < rows)[:, None]
    if GATE:
        by = tl.load(gate + m[:, None] * gate_stride + n[None, :], mask=there, other=0.0)
        y = y * by.to(tl.float32)
    if RESIDUAL:
        y += tl.load(residual + m[:, None] * N + n[None, :], mask=there, other=0.0).to(tl.float32)
    tl.store(out + m[:, None] * N + n[None, :], y.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["rows", "gate_stride"])
def _product(
    x, weight, bias, residual, gate, out, partial, counters, rows, gate_stride,
    N: tl.constexpr, K: tl.constexpr,
    BIAS: tl.constexpr, GELU: tl.constexpr, PAIRED: tl.constexpr, GATE: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SPLIT: tl.constexpr,
    LINE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    tile, part = tl.program_id(0) // SPLIT, tl.program_id(0) % SPLIT
    first = part * (K // DEPTH) // SPLIT
    last = (part + 1) * (K // DEPTH) // SPLIT
    m, n = tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
    if AHEAD:
        lines = weight + n[:, None] * K + (tl.arange(0, DEPTH // LINE) * LINE)[None, :]
        for block in range(first, last):
            _fetch(lines + block * DEPTH)
            if PAIRED:
                _fetch(lines + N * K + block * DEPTH)
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    k = tl.arange(0, DEPTH)
    x_at = x + m[:, None] * K + k[None, :]
    here = (m < rows)[:, None]
    w_at = weight + n[:, None] * K + k[None, :]
    y = tl.zeros([ROWS, COLUMNS], tl.float32)
    y2 = tl.zeros([ROWS, COLUMNS], tl.float32)
    for block in range(first, last):
        xs = tl.load(x_at + block * DEPTH, mask=here, other=0.0, eviction_policy="evict_last")
        y = tl.dot(xs, tl.load(w_at + block * DEPTH, eviction_policy="evict_first").T, y)
        if PAIRED:
            ws = tl.load(w_at + N * K + block * DEPTH, eviction_policy="evict_first")
            y2 = tl.dot(xs, ws.T, y2)
    if SPLIT == 1:
        _finish(
            y, y2, m, n, rows, bias, residual, gate, gate_stride, out, N, BIAS, GELU, PAIRED, GATE, RESIDUAL
        )
    else:
        SIZE: tl.constexpr = ROWS * COLUMNS
        slots = partial + tile * SPLIT * SIZE + m[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        second: tl.constexpr = (N // COLUMNS) * SPLIT * SIZE
        tl.store(slots + part * SIZE, y, mask=here)
        if PAIRED:
            tl.store(slots + second + part * SIZE, y2, mask=here)
        tl.debug_barrier()
        if tl.atomic_add(counters + tile, 1, sem="acq_rel") == SPLIT - 1:
            tl.debug_barrier()
            y = _sum(slots, here, SPLIT, SIZE)
            if PAIRED:
                y2 = _sum(slots + second, here, SPLIT, SIZE)
            _finish(
                y, y2, m, n, rows, bias, residual, gate, gate_stride, out, N,
                BIAS, GELU, PAIRED, GATE, RESIDUAL,
            )  # fmt: skip
            tl.store(counters + tile, 0)  # for the next launch


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    gelu: bool,
    paired: bool,
    plan: Plan,
    counters: Tensor | None = None,
) -> Tensor:
    """``residual + gate * act(x @ weight.T + bias)`` in float32, rounded once, of contiguous tensors.

    Args:
        x: ``[M, K]``, M at most ``MOST_ROWS``.
        weight: ``[N, K]``, or with ``paired`` ``[2 N, K]``: ``act`` of the first half times the second.
        bias: ``[N]`` or ``[2 N]``.
        residual: ``[M, N]``.
        gate: ``[M, N]``, or ``[1, N]`` for all rows.
        gelu: ``act`` is GELU, approximated by tanh; else nothing.
        plan: divides N and K.
        counters: int32 zeros, one for each tile, and zeros again when the product is done. No other product
            that may run at the same time has them. None: made here, where a plan wants some.
    """
    (rows, inputs), outputs = x.shape, weight.shape[0] // (2 if paired else 1)
    tiles = outputs // plan.columns
    out = x.new_empty(rows, outputs)
    partial = out
    if plan.split > 1:
        size = (2 if paired else 1) * tiles * plan.split * MOST_ROWS * plan.columns
        partial = x.new_empty(size, dtype=torch.float32)
        counters = x.new_zeros(tiles, dtype=torch.int32) if counters is None else counters
    launch: Any = _product[(tiles * plan.split,)]
    launch(
        x, weight, out if bias is None else bias, out if residual is None else residual,
        out if gate is None else gate, out, partial, out if counters is None else counters,
        rows, 0 if gate is None or gate.shape[0] == 1 else outputs,
        N=outputs, K=inputs,
        BIAS=bias is not None, GELU=gelu, PAIRED=paired, GATE=gate is not None, RESIDUAL=residual is not None,
        ROWS=MOST_ROWS, COLUMNS=plan.columns, DEPTH=plan.depth, SPLIT=plan.split,
        LINE=LINE, AHEAD=plan.ahead,
        num_warps=plan.warps, num_stages=plan.stages, launch_pdl=plan.ahead,
    )  # fmt: skip
    return out
