"""Attention of few queries, to few keys, of heads with keys of their own.

cuDNN's kernel takes a memset, and a kernel that makes numbers of the mask; both are as long as the attention
itself is here.

Shape legend: B rows, n heads, L queries, S keys, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_heads.few_rows import when

WIDTHS = (32, 64, 128)
MOST_KEYS = 1024
"""A program goes through all keys of a head."""

PREFIXED_WIDTHS = (32, 64, 128, 256)
MOST_OWN, MOST_PREFIXED = 64, 1984
"""Own tokens are one part; a prefix 31, which one program brings together with it."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, streamed: bool) -> Tensor:
    """Scaled dot-product attention, heads side by side, contiguous: ``[B, L, n d]``.

    Args:
        q: ``[B, n, L, d]``.
        k, v: ``[B, n, S, d]``.
        mask: bool ``[B, 1, 1, S]``, True attends; each row sees a key. None: all.
        streamed: by the kernel for few rows, where ``q`` is what it takes.
    """
    if streamed and when.few(q[:, 0]) and q.shape[-1] in WIDTHS and k.shape[2] <= MOST_KEYS:
        return _attention(q, k, v, None if mask is None else mask.flatten(1))
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return found.transpose(1, 2).flatten(2).contiguous()


@torch.library.custom_op("vla_heads::few_rows_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """See :func:`vla_heads.few_rows.attention_kernel.attended`."""
    from vla_heads.few_rows.attention_kernel import attended

    with torch.cuda.device_of(q):
        return attended(_dense(q), _dense(k), _dense(v), None if mask is None else mask.contiguous())


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    rows, heads, length, width = q.shape
    return q.new_empty(rows, length, heads * width)


def takes_prefix(q: Tensor, k: Tensor, prefix: Tensor) -> bool:
    """Whether :func:`prefixed_attention` takes ``q [N, n, L, d]``, ``k [N, m, L, d]`` and a prefix's keys."""
    return (
        when.few(q[:, 0])
        and q.shape[-1] in PREFIXED_WIDTHS
        and k.shape[2] <= MOST_OWN
        and 0 < prefix.shape[2] <= MOST_PREFIXED
    )


@torch.library.custom_op("vla_heads::few_rows_prefixed_attention", mutates_args=())
def prefixed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    mask: Tensor,
    cosine: Tensor,
    sine: Tensor,
) -> Tensor:
    """See :func:`vla_heads.few_rows.prefixed_kernel.prefixed`."""
    from vla_heads.few_rows.prefixed_kernel import prefixed

    q, k, v, prefix_k, prefix_v = map(_dense, (q, k, v, prefix_k, prefix_v))
    mask, cosine, sine = (x.contiguous() for x in (mask, cosine, sine))
    with torch.cuda.device_of(q):
        return prefixed(q, k, v, prefix_k, prefix_v, mask, cosine, sine)


@prefixed_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    mask: Tensor,
    cosine: Tensor,
    sine: Tensor,
) -> Tensor:
    rows, heads, length, width = q.shape
    return q.new_empty(rows, length, heads * width)


def _dense(x: Tensor) -> Tensor:
    """With the numbers of a vector one beside the other."""
    return x if x.stride(-1) == 1 else x.contiguous()
