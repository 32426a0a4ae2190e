"""What training takes of memory, and what would hold a run that is too large."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from vla_core.errors import UserError
from vla_core.shard import shard_units

from vla_train.config import TrainerConfig
from vla_train.engine import Engine
from vla_train.memory.held import Activations
from vla_train.optimizer import eight_bit

GIB = 2**30
MOST_GPUS = 64
ROOM = 0.9
"""Share of a GPU that may be taken before activations: what is left is little enough."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process.

    Args:
        whole: kind (:data:`~vla_train.engine.base.KINDS`) -> bytes without any sharding.
        spreads: kinds that are split over the processes.
        world: processes.
        free: weights that train.
        wide: bytes a weight that moments could do without.
        activations: of one micro-batch; None: not looked for.
        gathered: what an engine that spreads weights or gradients has whole for a moment.
        early: there is room for the gradients from the start on, not only once activations go.
    """

    whole: Mapping[str, int]
    spreads: frozenset[str]
    world: int
    free: int
    wide: int
    activations: Activations | None = None
    gathered: int = 0
    early: bool = False

    @property
    def parts(self) -> dict[str, int]:
        """Kind -> bytes of one process."""
        return {
            kind: math.ceil(size / self.world) if kind in self.spreads else size
            for kind, size in self.whole.items()
        }

    @property
    def total(self) -> int:
        """Of one process."""
        return sum(self.parts.values())

    @property
    def peak(self) -> int | None:
        """The most at one moment; None: activations are not known.

        The gradients are all there when the optimizer steps, and few of them when activations are most.
        """
        if self.activations is None or self.activations.why_not:
            return None
        if self.early:
            return self.total + self.activations.peak + self.gathered
        gradients = self.parts["gradients"]
        return self.total - gradients + max(gradients, self.activations.peak + self.gathered)

    def line(self, engine: str) -> str:
        """For the table at the start."""
        parts = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in self.parts.items() if size)
        kept = (
            f"memory of one process of {self.world} ({engine}), GiB: {parts}; {self.total / GIB:.2f} in all"
        )
        found = self.activations
        if found is None:
            return f"{kept}, and activations on top"
        if found.why_not or self.peak is None:
            return f"{kept}, and activations on top (not estimated: {found.why_not})"
        gathered = f", gathered {self.gathered / GIB:.2f}" if self.gathered else ""
        then = "" if self.early else ", which gradients replace"
        return (
            f"{kept}; activations {found.saved / GIB:.2f}{gathered}{then}; {self.peak / GIB:.2f} at the peak"
        )

    def check(self, capacity: int) -> None:
        """Raise :class:`UserError` with what would do, where ``capacity`` bytes cannot hold it."""
        if self.total <= capacity:
            return
        fixes = []
        if self.wide:
            saved = self.wide * self.free / (self.world if "moments" in self.spreads else 1)
            fixes.append(f"trainer.moments=bf16 ({(self.total - saved) / GIB:.1f} GiB)")
        every = sum(self.whole.values())
        for count in range(self.world + 1, MOST_GPUS + 1):
            if every / count <= ROOM * capacity:
                fixes.append(f"trainer.sharding=fsdp2 on {count} GPUs ({every / count / GIB:.1f} GiB each)")
                break
        fixes.append("trainer.lora, or trainer.freeze_modules")
        raise UserError(
            f"training takes {self.total / GIB:.1f} GiB in each process before activations, and the GPU has "
            f"{capacity / GIB:.1f} GiB; what takes less: {'; '.join(fixes)}"
        )


def estimate(
    model: nn.Module,
    settings: TrainerConfig,
    engine: Engine,
    waiting: Collection[str] = (),
    activations: Activations | None = None,
) -> Estimate:
    """Of a model whose precision is set and whose frozen parameters are known.

    Args:
        model, settings, engine: of the run.
        waiting: names of parameters without gradients that will have some.
        activations: of the run (:mod:`vla_train.memory.activations`).
    """
    named = [(name, p, engine.numel(p)) for name, p in model.named_parameters()]
    parameters = [(p, n) for _, p, n in named]
    moving = [(p, n) for name, p, n in named if p.requires_grad or name in waiting]
    free = sum(n for _, n in moving)
    each = {"fp32": 4.0, "bf16": 2.0, "8bit": eight_bit.BYTES}[settings.moments]
    masters = free * 4 if engine.has_masters else sum(2 * n for p, n in moving if p.dtype == torch.bfloat16)
    return Estimate(
        {
            "weights": sum(n * p.element_size() for p, n in parameters),
            "gradients": sum(n * p.element_size() for p, n in moving),
            # Ours complete their weight, DeepSpeed's stand beside it.
            "masters": masters,
            "moments": math.ceil(free * 2 * each),
            "average": free * 4 if settings.ema_decay else 0,
        },
        engine.spreads,
        engine.world,
        free,
        4 if settings.moments == "fp32" and not engine.has_masters else 0,
        activations,
        _gathered(model, settings, engine),
        engine.early_gradients,
    )


def _gathered(model: nn.Module, settings: TrainerConfig, engine: Engine) -> int:
    """Bytes that a rank has whole for a moment, where weights or gradients are spread over the ranks."""
    if "gradients" not in engine.spreads:
        return 0
    if "bucket_mb" in engine.uses:  # ZeRO: one bucket is filled while another one is exchanged
        numbers = sum(engine.numel(p) for p in model.parameters())
        size = sum(engine.numel(p) * p.element_size() for p in model.parameters())
        kept = min(engine.most_whole, numbers) * size // max(1, numbers)
        return 2 * settings.bucket_mb * 2**20 + kept
    sizes = {id(p): engine.numel(p) * p.element_size() for p in model.parameters()}
    units = []
    for unit in shard_units(model):  # inner ones first: what they have is not their holder's
        own = [id(p) for p in unit.parameters() if id(p) in sizes]
        units.append(sum(sizes.pop(key) for key in own))
    rest, largest = sum(sizes.values()), sum(sorted(units)[-1 - settings.prefetch :])
    gradient = max(units, default=0)
    # The weights of no unit stay whole for the whole step; without resharding all do, beside their shares.
    return gradient + (rest + largest if settings.reshard else sum(units) // engine.world)


def check_fits(model: nn.Module, settings: TrainerConfig, engine: Engine) -> None:
    """Raise :class:`UserError` if the GPU of this process cannot hold what training keeps there."""
    if engine.device.type == "cuda" and not engine.offloads:
        estimate(model, settings, engine).check(torch.cuda.get_device_properties(engine.device).total_memory)
