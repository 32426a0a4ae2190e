"""Modules that are frozen at first and train from a step on."""

from __future__ import annotations

from torch import Tensor, nn
from vla_core.errors import ConfigError

from vla_train.config import TrainerConfig
from vla_train.optimizer.optim import named


class Stages:
    """``trainer.unfreeze``: which parameters wait, and for which step.

    A parameter that waits has no gradient, so nothing is computed or kept for it: its share of the backward
    pass, its gradient and its moments begin with its step. The optimizer has it in a group from the start, so
    that a state means the same before and after.

    Args:
        model: what is frozen for good, or reached by no loss, is known.
        config: of the trainer.

    Raises:
        ConfigError: an entry that names nothing, nothing that can train, or what another step names; or
            nothing trains in the first step.
    """

    def __init__(self, model: nn.Module, config: TrainerConfig) -> None:
        self.model = model
        self.starts: dict[str, int] = {}
        """Name -> first step."""
        key = "trainer.unfreeze"
        free = {name for name, p in model.named_parameters() if p.requires_grad}
        for step, entries in sorted(config.stages().items()):
            for entry in entries:
                found = named(model, entry, key) & free
                if not found:
                    raise ConfigError(
                        f"{key}: all of '{entry}' is frozen, by trainer.freeze_modules, by its part, or "
                        "because no loss depends on it"
                    )
                for name in found:
                    if self.starts.setdefault(name, step) != step:
                        raise ConfigError(
                            f"{key}: '{name}' is named by the steps {self.starts[name]} and {step}"
                        )
        if free and free == self.starts.keys():
            raise ConfigError(f"{key}: nothing trains before step {min(self.starts.values())}")

    def trains(self, name: str, parameter: Tensor) -> bool:
        """Whether a parameter trains at any time."""
        return parameter.requires_grad or name in self.starts

    def enter(self, step: int) -> bool:
        """Switch gradients as they are in ``step``; returns whether any was switched."""
        changed = False
        for name, parameter in self.model.named_parameters() if self.starts else ():
            if name in self.starts and parameter.requires_grad != (step >= self.starts[name]):
                parameter.requires_grad_(step >= self.starts[name])
                changed = True
        return changed

    def line(self, module: str) -> str:
        """When what lies below ``module`` begins, for a table; empty where nothing waits."""
        steps = sorted({step for name, step in self.starts.items() if name.startswith(f"{module}.")})
        if not steps:
            return ""
        below = [name for name, p in self.model.named_parameters() if name.startswith(f"{module}.")]
        waits = sum(name in self.starts for name in below)
        which = "" if waits == len(below) else f" ({waits} of {len(below)} tensors)"
        return f", from step {' and '.join(map(str, steps))} on{which}"
