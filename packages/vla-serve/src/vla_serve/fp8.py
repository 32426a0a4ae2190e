"""Linear layers in float8, where a GPU multiplies it: weights rounded once, activations at each call.

torchao does the work. What it costs in accuracy is measured on the policy itself before it answers anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vla_core.errors import UserError
from vla_core.packing import forget, read_once
from vla_core.policy import VLAPolicy

from vla_serve.engine.policy import Row, camera_inputs, fake_observation

MULTIPLE = 16
"""Sizes that the kernels take: rows of 16 bytes."""
LEAST = 512
"""Smaller layers are bound by their start, and gain nothing."""
PARTS = ("vlm.", "head.")
CAPABILITY = (8, 9)
ROWS = 4
MOST = 32
"""Robots in a batch, up to which products are tried."""
ALIGNED = 16
"""Bytes at whose multiples tensors begin for such products."""


@dataclass(frozen=True)
class Rounded:
    """What was made float8, and what that did.

    Args:
        layers: how many linear layers.
        kept: how many others stay as they are, since nothing here multiplies their sizes in float8.
        share: of the weights of backbone and head.
        cosine, largest: of normalised actions for made-up observations, against those before.
    """

    layers: int
    kept: int
    share: float
    cosine: float
    largest: float

    def __str__(self) -> str:
        kept = f" ({self.kept} stay bfloat16: no float8 product of their sizes here)" if self.kept else ""
        return (
            f"fp8: {self.layers} linear layers, {100 * self.share:.0f} % of the weights{kept}; normalised "
            f"actions against those before: cosine {self.cosine:.5f}, largest error {self.largest:.4f}"
        )


class _RoundedLinear(nn.Linear):
    """A layer whose weight is float8. Where an answer is differentiated, its product is one of bfloat16.

    Guidance towards an earlier chunk asks for gradients, and torch has none of products in float8.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight: Any = self.weight
        if torch.is_grad_enabled() and input.requires_grad:
            weight = weight.dequantize()
        return F.linear(input, weight, self.bias)


def check(device: str, dtype: torch.dtype) -> None:
    """Raise :class:`UserError` where fp8 cannot run, before anything is loaded."""
    if not device.startswith("cuda"):
        raise UserError(f"--fp8: runs on a GPU, and --device is {device}")
    if dtype is not torch.bfloat16:
        raise UserError("--fp8: rounds weights of bfloat16; add --dtype bfloat16")
    if find_spec("torchao") is None:
        raise UserError("--fp8: torchao is not installed: pip install 'vla-serve[fp8]'")
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        raise UserError(
            f"--fp8: needs a GPU of compute capability {'.'.join(map(str, CAPABILITY))} or later, "
            f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, found))}"
        )


def candidates(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> linear layer of backbone and head that float8 kernels take and gain from.

    A layer with a forward of its own reads its weight in its own way, and stays; so does one whose weight is
    not read for each answer (of what the time contributes), where float8 would cost accuracy alone.
    """
    rarely = read_once(model)
    return {
        name: part
        for name, part in model.named_modules()
        if name.startswith(PARTS)
        and part not in rarely
        and isinstance(part, nn.Linear)
        and type(part).forward is nn.Linear.forward
        and all(size % MULTIPLE == 0 and size >= LEAST for size in (part.in_features, part.out_features))
    }


def round_linears(policy: VLAPolicy) -> Rounded:
    """Round the linear layers of a policy on a GPU, in place, and compare its answers with those before.

    A layer stays as it is where torch has no float8 product of its size and of the rows that it gets.

    Raises:
        UserError: no layer that could be rounded.
    """
    chosen = candidates(policy.model)
    if not chosen:
        raise UserError(f"--fp8: no linear layer of at least {LEAST} x {LEAST} in this policy")
    every = sum(p.numel() for name, p in policy.model.named_parameters() if name.startswith(PARTS))
    before = _answers(policy)
    lengths = _lengths(policy)
    known: dict[tuple[int, ...], bool] = {}
    rounded = [layer for layer in chosen.values() if _round(layer, lengths, known)]
    if not rounded:
        raise UserError(f"--fp8: torch multiplies none of this policy's {len(chosen)} layers in float8 here")
    forget(policy.model)  # what answers so far have left of weights that were not rounded
    share = sum(layer.weight.numel() for layer in rounded) / every
    after = _answers(policy)
    cosine = torch.cosine_similarity(before.flatten(), after.flatten(), 0)
    kept = len(chosen) - len(rounded)
    return Rounded(len(rounded), kept, share, float(cosine), float((after - before).abs().max()))


def _lengths(policy: VLAPolicy) -> set[int]:
    """How many rows linear layers get of one robot's observation.

    Of all layers: those whose products are computed around them see none, and others beside them do.
    """
    found: set[int] = set()

    def count(layer: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        rows: Tensor = given[0] if given else named["input"]
        found.add(rows.shape[:-1].numel())

    hooks = [
        part.register_forward_pre_hook(count, with_kwargs=True)
        for part in policy.model.modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        _answers(policy, rows=1)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _round(layer: nn.Linear, lengths: set[int], known: dict[tuple[int, ...], bool]) -> bool:
    """Round ``layer``, unless a product with it fails; ``known``: what was tried with others like it."""
    from torchao.quantization import quantize_

    before, bias = layer.weight, layer.bias
    quantize_(layer, _rows(), filter_fn=lambda module, _: module is layer)
    # Libraries ask for sizes and for where tensors begin.
    kind = (*before.shape, -1 if bias is None else bias.data_ptr() % ALIGNED, before.data_ptr() % ALIGNED)
    if kind not in known:
        known[kind] = _multiplies(layer, lengths)
    if known[kind]:
        layer.__class__ = _RoundedLinear
    else:
        layer.weight = before
    return known[kind]


@torch.inference_mode()
def _multiplies(layer: nn.Linear, lengths: set[int]) -> bool:
    """Whether all products that batches of one to ``MOST`` robots need are to be had."""
    device = layer.weight.device
    batches = [2**power for power in range(MOST.bit_length())]
    try:
        for rows in sorted({length * batch for length in lengths for batch in batches}):
            layer(torch.zeros(rows, layer.in_features, dtype=torch.bfloat16, device=device))
    except torch.OutOfMemoryError:
        return True  # nor will larger ones run
    except RuntimeError:
        return False
    return True


def _rows() -> Any:
    """One scale a row, of activations and weights."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


def _answers(policy: VLAPolicy, rows: int = ROWS) -> Tensor:
    spec = next(iter(policy.specs.values()))
    generator, observed = np.random.default_rng(0), []
    for seed in range(rows):
        made = fake_observation(spec, camera_inputs(policy))
        noise = {name: generator.integers(0, 256, x.shape, np.uint8) for name, x in made.images.items()}
        observed.append(Row(replace(made, images=noise), seed=seed))
    with torch.inference_mode():
        return policy.predict(policy.prepare(observed)).float().cpu()
