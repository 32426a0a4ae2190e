"""Linear layers in float8, where a GPU multiplies it: weights rounded once, activations at each call.

torchao does the work. What it costs in accuracy is measured on the policy itself before it answers anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vla_core.errors import UserError
from vla_core.policy import VLAPolicy

from vla_serve.engine.policy import Row, camera_inputs, fake_observation

MULTIPLE = 16
"""Sizes that the kernels take: rows of 16 bytes."""
LEAST = 512
"""Smaller layers are bound by their start, and gain nothing."""
PARTS = ("vlm.", "head.")
CAPABILITY = (8, 9)
ROWS = 4


@dataclass(frozen=True)
class Rounded:
    """What was made float8, and what that did.

    Args:
        layers: how many linear layers.
        share: of the weights of backbone and head.
        cosine, largest: of normalised actions for made-up observations, against those before.
    """

    layers: int
    share: float
    cosine: float
    largest: float

    def __str__(self) -> str:
        return (
            f"fp8: {self.layers} linear layers, {100 * self.share:.0f} % of the weights; normalised actions "
            f"against those before: cosine {self.cosine:.5f}, largest error {self.largest:.4f}"
        )


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

    A layer with a forward of its own reads its weight in its own way, and stays.
    """
    return {
        name: part
        for name, part in model.named_modules()
        if name.startswith(PARTS)
        and isinstance(part, nn.Linear)
        and type(part).forward is nn.Linear.forward
        and all(size % MULTIPLE == 0 and size >= LEAST for size in (part.in_features, part.out_features))
    }


def round_linears(policy: VLAPolicy) -> Rounded:
    """Round the linear layers of a policy on a GPU, in place, and compare its answers with those before.

    Raises:
        UserError: no layer that could be rounded.
    """
    from torchao.quantization import quantize_

    chosen = candidates(policy.model)
    if not chosen:
        raise UserError(f"--fp8: no linear layer of at least {LEAST} x {LEAST} in this policy")
    every = sum(p.numel() for name, p in policy.model.named_parameters() if name.startswith(PARTS))
    share = sum(layer.weight.numel() for layer in chosen.values()) / every
    before = _answers(policy)
    quantize_(policy.model, _rows(), filter_fn=lambda _, name: name in chosen)
    after = _answers(policy)
    cosine = torch.cosine_similarity(before.flatten(), after.flatten(), 0)
    return Rounded(len(chosen), share, float(cosine), float((after - before).abs().max()))


def _rows() -> Any:
    """One scale a row, of activations and weights."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


def _answers(policy: VLAPolicy) -> Tensor:
    spec = next(iter(policy.specs.values()))
    generator, rows = np.random.default_rng(0), []
    for seed in range(ROWS):
        made = fake_observation(spec, camera_inputs(policy))
        noise = {name: generator.integers(0, 256, x.shape, np.uint8) for name, x in made.images.items()}
        rows.append(Row(replace(made, images=noise), seed=seed))
    with torch.inference_mode():
        return policy.predict(policy.prepare(rows)).float().cpu()
