"""How much of a chip's arithmetic a run uses: MFU, the model FLOP utilisation (arXiv 2204.02311).

MFU = FLOP that one sample needs x samples/s / (processes x peak of one chip).

The FLOP are counted, not estimated: one forward and backward pass of the very model on a sample of each data
set, matrix products, convolutions and attention at 2 FLOP a multiply-add. What is computed a second time to
save memory is not needed and does not count, and what is frozen costs only what passes through it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from vla_core.batch import Batch, ConversationBatch

from vla_train.engine import Engine

PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H20": 148.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
"""Dense bf16 products with fp32 sums, of the makers' data sheets."""


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Scores and their product with the values; a causal mask is not subtracted."""
    rows, heads, length, dim = query.shape
    return 2 * rows * heads * length * key.shape[2] * (dim + value.shape[3])


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    """Two products for each of the forward pass; the scores that the kernels compute again do not count."""
    return 2 * _attention(query, key, value)


_ATTENTION: dict[Any, Callable[..., int]] = {}
for _name in ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu"):
    _forward = getattr(torch.ops.aten, f"_scaled_dot_product_{_name}")
    _ATTENTION[_forward] = _attention
    _ATTENTION[getattr(torch.ops.aten, f"_scaled_dot_product_{_name}_backward")] = _attention_backward
_FORMULAS: dict[Any, Callable[..., int]] = {**flop_registry, **_ATTENTION}


class _Counter(TorchDispatchMode):
    """Adds up what is computed within the block, but not what a backward pass computes again."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.backward = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        # A backward pass differentiates nothing itself: where gradients are on, a block is run again.
        if formula is not None and not (self.backward and torch.is_grad_enabled()):
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def sample_flop(model: nn.Module, batch: Batch, engine: Engine) -> float:
    """FLOP of one training sample, forward and backward, by doing it; the model stays as it is.

    Called by all ranks: under sharding a pass is the work of all.
    """
    mode = model.training
    model.train()
    devices = [engine.device] if engine.device.type == "cuda" else []
    counter = _Counter()
    # Compiled code does not say what it computes.
    with torch.random.fork_rng(devices=devices), torch.compiler.set_stance("force_eager"), counter:
        with engine.autocast():
            loss = torch.stack(list(model(batch.to(engine.device)).values())).sum()
        counter.backward = True
        loss.backward()
    model.zero_grad()
    model.train(mode)
    return counter.total / len(batch)


def peak_tflops(device: torch.device) -> float | None:
    """What the maker of the GPU states (:data:`PEAK_TFLOPS`); None: unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for chip, peak in PEAK_TFLOPS.items() if re.search(rf"\b{chip}\b", name)), None)


def utilisation(
    model: nn.Module, batch: Batch | ConversationBatch, engine: Engine, peak: float | None
) -> float | None:
    """MFU of one sample/s; None: the peak is not known, or the samples are not all alike.

    Args:
        model: split, if the engine splits; of one without numbers none are counted.
        batch: a sample of each data set. Conversations are of any length: no sample stands for them.
        engine: that will run it.
        peak: TFLOP/s of one process's chip, where the user states it.
    """
    peak = peak_tflops(engine.device) if peak is None else peak
    if peak is None or not engine.computes_early or any(p.is_meta for p in model.parameters()):
        return None
    if isinstance(batch, ConversationBatch) or batch.conversations is not None:
        return None
    return sample_flop(model, batch, engine) / (engine.world * peak * 1e12)
