"""The attention of :mod:`vla_heads.few_rows` on a GPU: a program for each head of up to 64 queries.

Shape legend: B rows, n heads, L queries, S keys, d head width.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

QUERIES, KEYS = 64, 128
"""At a time."""

LOG2_E = 1.4426950408889634

AHEAD = True
"""Start before the kernel in front is done."""


@triton.jit(do_not_specialize=["length", "keys", "mask_row"])
def _attend(
    q, k, v, mask, out, length, keys, scale,
    q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token, mask_row,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    if AHEAD:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    row, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    token, d = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    # Queries and keys that are not there are the last one again: not stored the ones, not seen the others.
    own = tl.minimum(token, length - 1)
    asked = tl.load(q + row * q_row + head * q_head + own[:, None] * q_token + d[None, :])
    k_at, v_at = k + row * k_row + head * k_head, v + row * v_row + head * v_head
    best = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    found = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, keys, KEYS):
        key = start + tl.arange(0, KEYS)
        seen, at = key < keys, tl.minimum(key, keys - 1)
        if MASKED:
            seen = seen & (tl.load(mask + row * mask_row + at) != 0)
        kept = tl.load(k_at + at[None, :] * k_token + d[:, None])
        scores = tl.where(seen[None, :], tl.dot(asked, kept) * scale, float("-inf"))
        new = tl.maximum(best, tl.max(scores, 1))
        # Before the first key that is seen both are infinite, and their difference no number.
        level = tl.where(new == float("-inf"), 0.0, new)
        weights, less = tl.exp2(scores - level[:, None]), tl.exp2(best - level)
        total = total * less + tl.sum(weights, 1)
        values = tl.load(v_at + at[:, None] * v_token + d[None, :])
        found = tl.dot(weights.to(values.dtype), values, found * less[:, None])
        best = new
    found = (found / total[:, None]).to(out.dtype.element_ty)
    place = (row * length + token[:, None]) * (HEADS * WIDTH) + head * WIDTH + d[None, :]
    tl.store(out + place, found, mask=(token < length)[:, None])


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, ahead: bool | None = None) -> Tensor:
    """Scaled dot-product attention, heads side by side: ``[B, L, n d]``.

    Args:
        q: ``[B, n, L, d]``; d is a power of two, its numbers adjacent.
        k, v: ``[B, n, S, d]``, likewise.
        mask: bool ``[B, S]``, True attends; each row sees a key. None: all.
        ahead: start before the kernel in front is done; None: as ``AHEAD`` says.
    """
    (rows, heads, length, width), keys = q.shape, k.shape[2]
    out = q.new_empty(rows, length, heads * width)
    ahead = AHEAD if ahead is None else ahead
    launch: Any = _attend[(rows * heads, triton.cdiv(length, QUERIES))]
    launch(
        q, k, v, out if mask is None else mask, out, length, keys, LOG2_E * width**-0.5,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], 0 if mask is None else mask.stride(0),
        HEADS=heads, WIDTH=width, QUERIES=QUERIES, KEYS=64 if keys <= 64 else KEYS,
        MASKED=mask is not None, AHEAD=ahead,
        num_warps=4, num_stages=2, launch_pdl=ahead,
    )  # fmt: skip
    return out
