"""Weights of a low precision need fp32 copies to be trained: small steps vanish in their rounding."""

from __future__ import annotations

import torch
from torch import nn
from vla_core.errors import ConfigError

from vla_train.config import TrainerConfig
from vla_train.engine import Engine

LOW = (torch.bfloat16, torch.float16)


def check_masters(model: nn.Module, settings: TrainerConfig, engine: Engine) -> list[str]:
    """Lines to say about trainable weights of a low precision.

    Raises:
        ConfigError: they would be stepped without fp32 masters although all is to be fp32.
    """
    if engine.has_masters:
        return []
    low = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.dtype in LOW]
    if not low:
        return []
    name, parameter = low[0]
    dtype = str(parameter.dtype).removeprefix("torch.")
    trouble = (
        f"{sum(p.numel() for _, p in low):,} weights ({name}, ...) would be trained in {dtype} without fp32 "
        "masters, so that most small steps are rounded away"
    )
    fix = (
        f"set framework.{name.partition('.')[0]}.dtype=float32 with trainer.precision=bf16, freeze it, or "
        "use DeepSpeed"
    )
    if settings.precision == "fp32":
        raise ConfigError(f"trainer.precision is fp32, and {trouble}; {fix}")
    return [f"warning: {trouble}; {fix}"]
