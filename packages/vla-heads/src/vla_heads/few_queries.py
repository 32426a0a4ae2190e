"""Attention of few queries, of many heads that share their keys: matrix products over all heads at once.

A fused kernel gives a block of the GPU one head's queries, and walks all keys in it: with the 51 tokens and
8 heads of pi0's expert that is 8 blocks on 132 multiprocessors, 57 us a layer on an H100. Heads that share
keys and values (multi-query attention, arXiv 1911.02150) are rows of one product instead.

N rows, n heads, m key-value heads, L queries, S keys, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MULTIPLE = 8
"""Keys come in eights: cuBLAS has fast kernels only for rows of 16 bytes, which are 8 numbers of bf16."""


def shared_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """What scaled dot-product attention computes, with scores and softmax in float32.

    Args:
        q: ``[N, n, L, d]``.
        k, v: ``[N, m, S, d]``; n / m heads share each.
        mask: bool ``[N, 1, L, S]``, True attends; every query sees a key.

    Returns:
        ``[N, n, L, d]``.
    """
    (rows, heads, length, width), kv_heads = q.shape, k.shape[1]
    if missing := -k.shape[2] % MULTIPLE:
        k, v = F.pad(k, (0, 0, 0, missing)), F.pad(v, (0, 0, 0, missing))
        mask = F.pad(mask, (0, missing), value=False)
    folded = q.reshape(rows * kv_heads, -1, width)
    turned = k.flatten(0, 1).transpose(1, 2)
    if q.is_cuda and q.dtype != torch.float32:
        scores = torch.bmm(folded, turned, out_dtype=torch.float32)
    else:  # a CPU has no product that adds up in a wider type than it reads
        scores = torch.bmm(folded.float(), turned.float())
    scores = scores.view(rows, kv_heads, -1, length, k.shape[2]) * width**-0.5
    weights = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(dim=-1).to(v.dtype)
    out = torch.bmm(weights.view(rows * kv_heads, -1, k.shape[2]), v.flatten(0, 1))
    return out.view(rows, heads, length, width)
