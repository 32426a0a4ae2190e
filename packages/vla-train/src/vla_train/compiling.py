"""``trainer.compile``: the blocks that a model repeats, compiled one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vla_core.errors import ConfigError
from vla_core.graphs import compile_blocks

from vla_train.config import TrainerConfig
from vla_train.engine.base import Engine


def compile_model(model: nn.Module, settings: TrainerConfig, engine: Engine) -> str | None:
    """Compile as the settings say, in place and before the engine splits it; returns a line about it.

    Raises:
        ConfigError: the engine gathers and frees weights inside of blocks.
    """
    if settings.compile == "off":
        return None
    if engine.gathers_inside:
        raise ConfigError(
            f"trainer.compile: {engine.name} gathers and frees weights inside blocks, which compiled ones do "
            "not survive; leave it out, or use FSDP2 (configs/accelerate/fsdp2.yaml, or torchrun with "
            "trainer.sharding: fsdp2)"
        )
    # Cutting a block's graph where DDP's buckets end would undo what fusing its kernels gains.
    dynamo: Any = torch._dynamo.config
    dynamo.optimize_ddp = False
    functorch: Any = torch._functorch.config
    functorch.activation_memory_budget = settings.activation_budget
    budget = "" if settings.activation_budget == 1 else f", activation budget {settings.activation_budget:g}"
    return f"{compile_blocks(model, hooks=not engine.shards)} blocks are compiled in the first steps{budget}"
