"""Random words that depend on a row's noise alone, so that a batched answer equals the solo one.

Shape legend: B rows, N ids.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 over int64, whose products wrap around."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def row_keys(noise: Tensor) -> Tensor:
    """A number ``[B]`` for each row's noise ``[B, ...]``."""
    bits = noise.float().contiguous().flatten(1).view(torch.int32).long()
    place = torch.arange(bits.shape[1], device=bits.device)
    return _mixed(_mixed(bits + (place << 32)).sum(dim=1))


def gumbel(keys_B: Tensor, step: int, count: int) -> Tensor:
    """``[B, count]`` float64 draws for one step: added to logits, their largest is a draw from softmax."""
    place = torch.arange(count, device=keys_B.device) + (step << 32)
    bits = (_mixed(keys_B[:, None] + _mixed(place)) >> 11) & ((1 << 53) - 1)
    uniform = (bits.double() + 0.5) / (1 << 53)
    return -(-uniform.log()).log()
