"""AdamW over one tensor in one pass on a GPU: gradient, master, moments and weight are read and written once.

The arithmetic is that of :mod:`vla_train.optimizer.masters`, which says how a master is kept in two halves.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _step(
    weight, low, gradient, mean, square, scale,
    count, lr, decay, beta1, beta2, correction1, correction2, eps,
    SPLIT: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    grad = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    keep = inside
    if SCALED:
        factor = tl.load(scale) + tl.zeros([BLOCK], tl.float32)
        grad = grad * factor
        # NaN: nothing is written.
        keep = inside & (factor == factor)
    m = tl.load(mean + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(square + at, mask=inside, other=0.0).to(tl.float32)
    if SPLIT:
        high = tl.load(weight + at, mask=inside, other=0.0).to(tl.int16, bitcast=True).to(tl.int32)
        rest = tl.load(low + at, mask=inside, other=0).to(tl.int32)
        master = ((high << 16) + rest).to(tl.float32, bitcast=True)
    else:
        master = tl.load(weight + at, mask=inside, other=0.0)
    master = master * decay
    m = m + (grad - m) * (1.0 - beta1)
    v = v * beta2 + grad * grad * (1.0 - beta2)
    master = master - lr * (m / correction1) / (tl.sqrt(v) / correction2 + eps)
    tl.store(mean + at, m, mask=keep)
    tl.store(square + at, v, mask=keep)
    if SPLIT:
        # All bits of a NaN set would be carried into the sign.
        bits = tl.where(master == master, master.to(tl.int32, bitcast=True), 0x7FC00000)
        high = (bits + 0x8000) >> 16
        rest = bits - (high << 16)
        tl.store(weight + at, high.to(tl.int16).to(tl.bfloat16, bitcast=True), mask=keep)
        tl.store(low + at, rest.to(tl.int16), mask=keep)
    else:
        tl.store(weight + at, master, mask=keep)


def step(
    weight: Tensor,
    low: Tensor | None,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    scale: Tensor | None,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    number: int,
) -> None:
    """Step ``number`` (from 1) of contiguous tensors of one shape, in place.

    Args:
        weight: bfloat16 with ``low`` int16, or float32 with None.
        gradient: of any float type.
        mean, square: moments of any float type.
        scale: float32 scalar on the device that the gradient is multiplied with (NaN: all stays); None: 1.
    """
    count = weight.numel()
    if not count:
        return
    launch: Any = _step[(triton.cdiv(count, BLOCK),)]
    with torch.cuda.device_of(weight):
        launch(
            weight, weight if low is None else low, gradient, mean, square, mean if scale is None else scale,
            count, lr, 1.0 - lr * weight_decay, betas[0], betas[1],
            1.0 - betas[0] ** number, (1.0 - betas[1] ** number) ** 0.5, eps,
            SPLIT=low is not None, SCALED=scale is not None, BLOCK=BLOCK,
        )  # fmt: skip
