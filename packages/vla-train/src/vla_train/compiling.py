"""``trainer.compile``: the blocks that a model repeats, compiled one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vla_core.graphs import compile_blocks

from vla_train.config import TrainerConfig


def compile_model(model: nn.Module, settings: TrainerConfig) -> str | None:
    """Compile as the settings say, in place; returns a line about it."""
    if settings.compile == "off":
        return None
    # Cutting a block's graph where DDP's buckets end would undo what fusing its kernels gains.
    dynamo: Any = torch._dynamo.config
    dynamo.optimize_ddp = False
    functorch: Any = torch._functorch.config
    functorch.activation_memory_budget = settings.activation_budget
    budget = "" if settings.activation_budget == 1 else f", activation budget {settings.activation_budget:g}"
    return f"{compile_blocks(model)} blocks are compiled in the first steps{budget}"
