"""The table at the start of a run: modules, parameters, what trains, its rates, and the memory it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vla_train.precision import masters_of

if TYPE_CHECKING:
    from vla_train.config import TrainerConfig
    from vla_train.engine import Engine
    from vla_train.trainer import Trainer

PARTS = ("vlm", "geometry", "fusion", "head", "auxiliary")
GIB = 2**30


def overview(model: nn.Module, trainer: Trainer, engine: Engine) -> str:
    """The table as text.

    Memory is what must be there for weights, gradients, AdamW's two moments, fp32 masters and the average;
    activations come on top and depend on the batch.
    """
    settings = trainer.settings
    rates = settings.learning_rates()
    lines = [f"{'module':10} {'parameters':>15} {'trainable':>15} {'dtype':>10}  learning rate"]
    total = trains = 0
    for name in PARTS:
        part = getattr(model, name)
        if part is None:
            continue
        parameters = list(part.parameters())
        count = sum(p.numel() for p in parameters)
        free = sum(p.numel() for p in parameters if p.requires_grad)
        dtypes = "/".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})) or "-"
        own = {k: v for k, v in rates.items() if k == name or k.startswith(f"{name}.")} or {"": rates["base"]}
        text = ", ".join(f"{k}: {v:g}".removeprefix(": ") for k, v in own.items()) if free else "-"
        lines.append(f"{name:10} {count:15,} {free:15,} {dtypes:>10}  {text}")
        total, trains = total + count, trains + free
    lines.append(f"{'all':10} {total:15,} {trains:15,}")
    masters = masters_of(model, engine)
    stepped = "in fp32" if not masters else f"through fp32 masters of {masters:,}"
    lines.append(
        f"precision {settings.precision}: weights are stepped {stepped}, moments in {settings.moments}; "
        f"compile: {settings.compile}"
    )
    sizes = bytes_of(model, settings, engine)
    memory = ", ".join(f"{what} {size / GIB:.2f}" for what, size in sizes.items() if size)
    lines.append(
        f"memory of one process without sharding, GiB: {memory}; {sum(sizes.values()) / GIB:.2f} in all, and "
        "activations on top"
    )
    return "\n".join(lines) + "\n"


def bytes_of(model: nn.Module, settings: TrainerConfig, engine: Engine) -> dict[str, int]:
    """What must be there whatever the batch, in bytes, by what it is for."""
    parameters = list(model.parameters())
    moving = [p for p in parameters if p.requires_grad]
    free = sum(p.numel() for p in moving)
    return {
        "weights": sum(p.numel() * p.element_size() for p in parameters),
        "gradients": sum(p.numel() * p.element_size() for p in moving),
        # Ours complete their weight, DeepSpeed's stand beside it.
        "masters": masters_of(model, engine) * (4 if engine.has_masters else 2),
        "moments": free * (4 if settings.moments == "bf16" else 8),
        "average": free * 4 if settings.ema_decay else 0,
    }
