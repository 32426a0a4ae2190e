"""The table at the start of a run: modules, parameters, what trains, its rates, and the memory it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vla_train.memory.estimate import estimate
from vla_train.optimizer.precision import masters_of

if TYPE_CHECKING:
    from vla_train.engine import Engine
    from vla_train.trainer import Trainer

PARTS = ("vlm", "geometry", "fusion", "head", "auxiliary")


def overview(model: nn.Module, trainer: Trainer, engine: Engine) -> str:
    """The table as text, with an estimate of memory (:mod:`vla_train.memory.estimate`)."""
    settings = trainer.settings
    rates = settings.learning_rates()
    lines = [f"{'module':10} {'parameters':>15} {'trainable':>15} {'dtype':>10}  learning rate"]
    total = trains = 0
    for name in PARTS:
        part = getattr(model, name)
        if part is None:
            continue
        stages = trainer.stages
        parameters = list(part.parameters())
        count = sum(engine.numel(p) for p in parameters)
        free = sum(engine.numel(p) for n, p in part.named_parameters() if stages.trains(f"{name}.{n}", p))
        dtypes = "/".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})) or "-"
        own = {k: v for k, v in rates.items() if k == name or k.startswith(f"{name}.")} or {"": rates["base"]}
        text = ", ".join(f"{k}: {v:g}".removeprefix(": ") for k, v in own.items()) if free else "-"
        text += stages.line(name)
        lines.append(f"{name:10} {count:15,} {free:15,} {dtypes:>10}  {text}")
        total, trains = total + count, trains + free
    lines.append(f"{'all':10} {total:15,} {trains:15,}")
    masters = masters_of(model, engine, trainer.stages.starts)
    stepped = "in fp32" if not masters else f"through fp32 masters of {masters:,}"
    lines.append(
        f"precision {settings.precision}: weights are stepped {stepped}, moments in {settings.moments}; "
        f"compile: {settings.compile}"
    )
    found = estimate(model, settings, engine, trainer.stages.starts, trainer.activations)
    lines.append(found.line(engine.name))
    return "\n".join(lines) + "\n"
