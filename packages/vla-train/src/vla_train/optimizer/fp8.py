"""``trainer.fp8``: large linear layers that multiply in 8-bit floats, by torchao.

Inputs, weights and gradients are scaled by their largest magnitude, tensor by tensor and step by step
(arXiv 2209.05433), and rounded for each product alone: parameters, their gradients, their names and so the
checkpoints stay what they are without it.
"""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch import nn
from vla_core.errors import ConfigError

from vla_train.config import TrainerConfig
from vla_train.engine import Engine
from vla_train.engine.ddp import DDP
from vla_train.engine.local import Local

MULTIPLE = 16
"""Of both sides of a matrix that the hardware multiplies in fp8."""
LEAST = 1 << 21
"""Weights of a layer; rounding the numbers of a smaller one takes longer than its product saves."""
CAPABILITY = (8, 9)
"""Of the first GPUs with fp8 (Ada, then Hopper)."""


def check_fp8(settings: TrainerConfig, engine: Engine) -> None:
    """What ``trainer.fp8`` needs.

    Raises:
        ConfigError: torchao, the device, the precision or the engine is not right for it.
    """
    try:
        import torchao.float8  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"trainer.fp8 needs the package '{error.name}'; pip install 'vla-train[torchao]'"
        ) from error
    device = engine.device
    if settings.fp8 == "linears":
        if device.type != "cuda":
            raise ConfigError(f"trainer.fp8: linears needs a GPU, and this is the {device.type}; set off")
        if (has := torch.cuda.get_device_capability(device)) < CAPABILITY:
            raise ConfigError(
                f"trainer.fp8: {torch.cuda.get_device_name(device)} has no fp8 (compute capability "
                f"{has[0]}.{has[1]}, from {CAPABILITY[0]}.{CAPABILITY[1]} on); set off"
            )
    if settings.precision != "bf16":
        raise ConfigError(
            f"trainer.fp8 rounds what is computed in bf16, and trainer.precision is {settings.precision}; "
            "set precision: bf16"
        )
    if settings.lora is not None:
        raise ConfigError(
            "trainer.fp8 is for weights that train, and trainer.lora freezes them; leave one out"
        )
    from vla_train.engine.fsdp2 import FSDP2

    if not isinstance(engine, Local | DDP | FSDP2):
        raise ConfigError(f"trainer.fp8: not under {engine.name}; use DDP or trainer.sharding: fsdp2")


def use_fp8(model: nn.Module, settings: TrainerConfig, engine: Engine) -> str | None:
    """Convert the large linear layers of backbone and head as the settings say, in place.

    Layers of a geometry encoder, of the vocabulary and of sizes that do not fit stay. Returns a line that
    names what computes in fp8; None: nothing was asked for.

    Raises:
        ConfigError: see :func:`check_fp8`; or no layer is large enough.
    """
    if settings.fp8 == "off":
        return None
    check_fp8(settings, engine)
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    emulated = settings.fp8 == "emulated"
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    chosen = [name for name, m in linears.items() if _fits(name, m, 0 if emulated else LEAST)]
    if not chosen:
        raise ConfigError(
            f"trainer.fp8: none of {len(linears)} linear layers has {LEAST} weights and sides that are "
            f"multiples of {MULTIPLE}; set off"
        )
    names = frozenset(chosen)
    # The number of rows is what a batch has: it is filled up where a product needs it.
    config = Float8LinearConfig(emulate=emulated, pad_inner_dim=True)
    convert_to_float8_training(model, config=config, module_filter_fn=lambda _, name: name in names)
    kinds = Counter(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in chosen)
    listed = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    return f"{len(chosen)} of {len(linears)} linear layers compute in fp8: {listed}"


def _fits(name: str, layer: nn.Linear, least: int) -> bool:
    # A layer that an engine gathers by itself is of a class of its own.
    return (
        type(layer) is nn.Linear
        and name.startswith(("vlm.", "head."))
        and name.rpartition(".")[2] != "lm_head"
        and layer.weight.numel() >= least
        and layer.in_features % MULTIPLE == 0
        and layer.out_features % MULTIPLE == 0
    )
