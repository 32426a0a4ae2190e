"""Keys of the trainer section that tell how processes work together: each is of some engines."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vla_core.errors import ConfigError

from vla_train.config import TrainerConfig
from vla_train.engine.base import Engine
from vla_train.optimizer.optim import never_full

OF = {
    "reshard": "FSDP2; set trainer.sharding: fsdp2, or leave it out",
    "prefetch": "FSDP2; set trainer.sharding: fsdp2, or leave it out",
    "gather_mb": "FSDP2; set trainer.sharding: fsdp2, or leave it out",
    "bucket_mb": "DDP and ZeRO; leave it out",
}
"""Whose they are: another engine of several processes would take them in silence."""
SEVERAL = ("bucket_mb", "hang_timeout_s")
"""What a config of several processes may hold that is tried on one."""


def unused(settings: TrainerConfig, engine: Engine, mfu: bool) -> list[str]:
    """Lines that name what is set and has no effect here, though it has for the same config elsewhere.

    ``mfu``: whether it is computed.

    Raises:
        ConfigError: a key that this engine has no use for.
    """
    defaults = {field.name: field.default for field in fields(TrainerConfig)}
    given = {key: getattr(settings, key) for key in (*OF, *SEVERAL)}
    given = {key: value for key, value in given.items() if value != defaults[key]}
    alone = [key for key in SEVERAL if key in given and engine.world == 1 and key not in engine.uses]
    for key, value in given.items():
        if key in OF and key not in (*engine.uses, *alone):
            raise ConfigError(f"trainer.{key}: {_yaml(value)} is of {OF[key]} (this is {engine.name})")
    lines = never_full(settings)
    for step in settings.stages():
        if step > settings.max_steps:
            lines.append(f"trainer.unfreeze.{step} has no effect: the last step is {settings.max_steps}")
    if alone:
        named = " and ".join(f"trainer.{key}" for key in alone)
        has = "they have" if len(alone) > 1 else "it has"
        lines.append(f"{named}: of several processes; in one {has} no effect")
    if settings.peak_tflops is not None and not mfu:
        lines.append("trainer.peak_tflops has no effect: no MFU is computed with conversations or ZeRO-3")
    return lines


def _yaml(value: Any) -> str:
    return str(value).lower()
