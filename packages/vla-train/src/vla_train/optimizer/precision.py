"""In which precision a run keeps its weights and computes; fp32 masters step weights of a low one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from vla_core.backbone import BackboneModel
from vla_core.errors import ConfigError
from vla_core.model import VLAModel

from vla_train.config import TrainerConfig
from vla_train.engine import Engine
from vla_train.optimizer.eight_bit import check_installed
from vla_train.optimizer.masters import MasterAdamW, counted

MOMENT_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "8bit": torch.uint8}


def set_precision(model: VLAModel | BackboneModel, settings: TrainerConfig, engine: Engine) -> None:
    """Round the weights to bf16 where ``trainer.precision`` says so, in place.

    Buffers stay: rotary tables and the like lose their meaning in bf16. A geometry encoder keeps its weights,
    which have an option of their own, and computes under autocast, as such encoders were trained. Under an
    engine that keeps masters itself nothing is done here.
    """
    if settings.precision != "bf16" or engine.has_masters:
        return
    device = engine.device
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not name.startswith("geometry."):
            parameter.data = parameter.data.to(torch.bfloat16)
    if device.type == "cuda":
        # What the wider weights took is of other sizes than what activations will take.
        torch.cuda.empty_cache()
    if model.geometry is not None:
        encoder: Any = model.geometry
        encoder.forward = torch.autocast(device.type, torch.bfloat16)(encoder.forward)


def masters_of(model: nn.Module, engine: Engine, waiting: Collection[str] = ()) -> int:
    """How many trainable weights have a master beside them; ``waiting``: names of those that train later."""
    free = [p for name, p in model.named_parameters() if p.requires_grad or name in waiting]
    kept = free if engine.has_masters else [p for p in free if p.dtype == torch.bfloat16]
    return sum(engine.numel(p) for p in kept)


def make_optimizer(
    groups: list[dict[str, Any]], settings: TrainerConfig, engine: Engine
) -> torch.optim.Optimizer:
    """AdamW for the groups: one with masters where a weight has a low precision and the engine keeps none.

    Raises:
        ConfigError: moments of a precision that the engine does not have, or steps that it cannot leave out.
    """
    if settings.skip_bad_steps and engine.has_masters:
        raise ConfigError(
            f"trainer.skip_bad_steps: {engine.name} leaves nothing out; use DDP or FSDP2, or set 0"
        )
    if settings.unfreeze and engine.has_masters:
        raise ConfigError(
            f"trainer.unfreeze: {engine.name} lays out once what trains; use DDP or FSDP2, or two runs with "
            "trainer.pretrained_checkpoint"
        )
    if settings.ema_decay and engine.has_masters and engine.shards:
        raise ConfigError(
            f"trainer.ema_decay: {engine.name} holds no weights between two steps to average; use "
            "FSDP2 or ZeRO-2, or set 0"
        )
    if settings.moments != "fp32" and engine.has_masters:
        raise ConfigError(f"trainer.moments: {engine.name} keeps them in fp32; set moments: fp32")
    low = any(p.dtype == torch.bfloat16 for group in groups for p in group["params"])
    if settings.moments == "8bit":
        if engine.shards:
            raise ConfigError(
                f"trainer.moments: 8bit are blocks of whole weights, and {engine.name} splits them; set bf16"
            )
        check_installed()
    if settings.moments != "fp32" or settings.skip_bad_steps or (low and not engine.has_masters):
        return MasterAdamW(groups, settings.betas, settings.eps, MOMENT_TYPES[settings.moments])
    cuda = engine.device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps, fused=cuda)
    # A state that MasterAdamW left counts in plain numbers.
    optimizer.register_load_state_dict_pre_hook(_counted)
    return optimizer


def _counted(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    return {**saved, "state": {name: counted(state, False) for name, state in saved["state"].items()}}
