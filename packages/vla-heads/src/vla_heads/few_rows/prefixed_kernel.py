"""Attention of few tokens to a long prefix and to each other, on a GPU: programs share queries and keys.

Heads that share keys are rows of one product, as in :mod:`vla_heads.few_queries`. A program multiplies 64 of
these rows with 64 keys; what it finds is weighed against that of the others by a second kernel.

Shape legend: N rows, n heads, m key-value heads, L own tokens, S prefix tokens, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

QUERIES, KEYS = 64, 64
"""Of a program."""

SOME = 64
"""Of the numbers of half a vector at a time: for all there are no registers."""

LOG2_E = 1.4426950408889634

AHEAD = True
"""Start before the kernel in front is done."""


@triton.jit
def _turned(first, second, cosine, sine, kind: tl.constexpr):
    """Both halves of vectors at their rotary positions."""
    first, second = first.to(tl.float32), second.to(tl.float32)
    return (first * cosine - second * sine).to(kind), (second * cosine + first * sine).to(kind)


@triton.jit(do_not_specialize=["length", "keys", "mask_row", "mask_token"])
def _part(
    q, k, v, prefix_k, prefix_v, mask, cosine, sine, found, best, total, length, keys, scale,
    q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token,
    prefix_k_row, prefix_k_head, prefix_k_token, prefix_v_row, prefix_v_head, prefix_v_token,
    turn_row, turn_token, mask_row, mask_token,
    SHARED: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr, SOME: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    if AHEAD:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    row, head = tl.program_id(0) // SHARED, tl.program_id(0) % SHARED
    kind: tl.constexpr = q.dtype.element_ty
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    there = query < GROUP * length
    query = tl.minimum(query, GROUP * length - 1)
    token = query % length
    part, own = tl.program_id(2), tl.program_id(2) == tl.num_programs(2) - 1
    if own:
        k_at, k_step = k + row * k_row + head * k_head, k_token
        v_at, v_step = v + row * v_row + head * v_head, v_token
        start, count, before = 0, length, keys
    else:
        k_at, k_step = prefix_k + row * prefix_k_row + head * prefix_k_head, prefix_k_token
        v_at, v_step = prefix_v + row * prefix_v_row + head * prefix_v_head, prefix_v_token
        start, count, before = part * KEYS, keys, 0
    key = start + tl.arange(0, KEYS)
    seen = tl.load(
        mask + row * mask_row + token[:, None] * mask_token + (before + key)[None, :],
        mask=(key < count)[None, :] & there[:, None],
        other=0,
    )
    key = tl.minimum(key, count - 1)
    some = tl.arange(0, SOME)
    q_at = q + row * q_row + (head * GROUP + query // length)[:, None] * q_head + token[:, None] * q_token
    q_turn = row * turn_row + token[:, None] * turn_token + some[None, :]
    # The prefix is at its positions already: turned by nothing.
    k_turn = row * turn_row + key[:, None] * turn_token + some[None, :]
    scores = tl.zeros([QUERIES, KEYS], tl.float32)
    for first in range(0, HALF, SOME):
        at = q_at + first + some[None, :]
        q1, q2 = _turned(
            tl.load(at), tl.load(at + HALF),
            tl.load(cosine + q_turn + first), tl.load(sine + q_turn + first), kind,
        )  # fmt: skip
        at = k_at + key[:, None] * k_step + first + some[None, :]
        k1, k2 = _turned(
            tl.load(at), tl.load(at + HALF),
            tl.load(cosine + k_turn + first, mask=own, other=1.0),
            tl.load(sine + k_turn + first, mask=own, other=0.0), kind,
        )  # fmt: skip
        scores = tl.dot(q2, k2.T, tl.dot(q1, k1.T, scores))
    scores *= scale
    scores = tl.where(seen != 0, scores, float("-inf"))
    most = tl.max(scores, 1)
    weights = tl.exp2(scores - tl.where(most == float("-inf"), 0.0, most)[:, None])
    wide = tl.arange(0, 2 * HALF)
    values = tl.load(v_at + key[:, None] * v_step + wide[None, :])
    place = ((part * tl.num_programs(0) + tl.program_id(0)) * GROUP * length) + query
    tl.store(best + place, most, mask=there)
    tl.store(total + place, tl.sum(weights, 1), mask=there)
    summed = tl.dot(weights.to(kind), values)
    tl.store(found + place[:, None] * (2 * HALF) + wide[None, :], summed, mask=there[:, None])


@triton.jit(do_not_specialize=["parts", "length"])
def _together(
    found, best, total, out, parts, length,
    SHARED: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    if AHEAD:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    query, part, d = tl.program_id(0), tl.arange(0, PARTS), tl.arange(0, WIDTH)
    there, place = part < parts, part * tl.num_programs(0) + query
    most = tl.load(best + place, mask=there, other=float("-inf"))
    weight = tl.exp2(most - tl.max(most, 0))
    all_of_it = tl.sum(tl.load(total + place, mask=there, other=0.0) * weight, 0)
    rows = tl.load(found + place[:, None] * WIDTH + d[None, :], mask=there[:, None], other=0.0)
    y = tl.sum(rows * weight[:, None], 0) / all_of_it
    token, head = query % length, query // length
    row, head = head // (SHARED * GROUP), head % (SHARED * GROUP)
    at = out + ((row * length + token) * SHARED * GROUP + head) * WIDTH
    tl.store(at + d, y.to(out.dtype.element_ty))


def prefixed(
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, mask: Tensor,
    cosine: Tensor, sine: Tensor, ahead: bool | None = None,
) -> Tensor:  # fmt: skip
    """Attention to [prefix | own tokens], heads side by side: ``[N, L, n d]``.

    Args:
        q: ``[N, n, L, d]``, not at its rotary positions yet; the numbers of a vector are adjacent.
        k, v: ``[N, m, L, d]``, likewise; n / m heads share each.
        prefix_k, prefix_v: ``[N, m, S, d]``, keys at theirs.
        mask: bool ``[N, L, S + L]``, True attends; every query sees a key.
        cosine, sine: float32 ``[N, L, d]``, of which both halves are the same.
        ahead: start before the kernel in front is done; None: as ``AHEAD`` says.
    """
    (rows, heads, length, width), shared, keys = q.shape, k.shape[1], prefix_k.shape[2]
    parts, queries = parts_of(keys), rows * heads * length
    found = q.new_empty(parts, queries, width, dtype=torch.float32)
    best, total = q.new_empty(2, parts, queries, dtype=torch.float32)
    out = q.new_empty(rows, length, heads * width)
    ahead = AHEAD if ahead is None else ahead
    group = heads // shared
    first: Any = _part[(rows * shared, triton.cdiv(group * length, QUERIES), parts)]
    first(
        q, k, v, prefix_k, prefix_v, mask, cosine, sine, found, best, total, length, keys,
        LOG2_E * width**-0.5,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *prefix_k.stride()[:3], *prefix_v.stride()[:3],
        *cosine.stride()[:2], *mask.stride()[:2],
        SHARED=shared, GROUP=group, HALF=width // 2, SOME=min(width // 2, SOME),
        QUERIES=QUERIES, KEYS=KEYS, AHEAD=ahead, num_warps=8, num_stages=1, launch_pdl=ahead,
    )  # fmt: skip
    second: Any = _together[(queries,)]
    second(
        found, best, total, out, parts, length,
        SHARED=shared, GROUP=group, WIDTH=width, PARTS=triton.next_power_of_2(parts), AHEAD=ahead,
        num_warps=4, launch_pdl=ahead,
    )  # fmt: skip
    return out


def parts_of(keys: int) -> int:
    """Parts that a prefix of so many keys is cut into, and the own tokens."""
    return -(-keys // KEYS) + 1
