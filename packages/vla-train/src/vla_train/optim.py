"""Parameter groups, freezing and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from vla_core.errors import ConfigError, suggest

from vla_train.config import TrainerConfig


def _modules(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _check(prefix: str, key: str, modules: Iterable[str]) -> None:
    known = list(modules)
    if prefix not in known:
        # Suggesting from thousands of names helps nobody: offer those of the same depth.
        depth = prefix.count(".")
        near = [m for m in known if m.count(".") <= depth]
        raise ConfigError(f"{key}: the policy has no module '{prefix}'{suggest(prefix, near)}")


def freeze(model: nn.Module, entries: Iterable[str]) -> None:
    """Switch gradients off below each module, or of each parameter whose whole name a regex matches.

    Raises:
        ConfigError: an entry that names no module and matches no parameter, or a module without any.
    """
    modules = _modules(model)
    for entry in entries:
        if entry in modules:
            module = model.get_submodule(entry)
            if next(module.parameters(), None) is None:
                raise ConfigError(f"trainer.freeze_modules: the module '{entry}' has no parameters")
            module.requires_grad_(False)
            continue
        try:
            found = [p for name, p in model.named_parameters() if re.fullmatch(entry, name)]
        except re.error:
            found = []
        if not found:
            _check(entry, "trainer.freeze_modules", modules)
        for parameter in found:
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, config: TrainerConfig) -> list[dict[str, Any]]:
    """AdamW groups: learning rate by the longest matching module prefix, no decay on vectors."""
    rates = config.learning_rates()
    modules = _modules(model)
    for prefix in rates:
        if prefix != "base":
            _check(prefix, "trainer.learning_rate", modules)
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matching = [p for p in rates if p != "base" and _under(name, p)]
        prefix = max(matching, key=len, default="base")
        decays = parameter.ndim >= 2
        group = groups.setdefault(
            (prefix, decays),
            {
                "params": [],
                "lr": rates[prefix],
                "weight_decay": config.weight_decay if decays else 0.0,
                "prefix": prefix,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise ConfigError("trainer.freeze_modules leaves nothing to train")
    return list(groups.values())


def lr_factor(config: TrainerConfig) -> Callable[[int], float]:
    """Steps done -> factor on the learning rate of the next one: warm-up, then the schedule."""
    total, floor = config.max_steps, config.min_lr_ratio
    warmup = config.warmup()
    decay = max(1, round(total * config.decay_ratio))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "wsd":
            left = max(0.0, min(1.0, (total - step) / decay))
            return floor + (1 - floor) * left
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        if config.schedule == "linear":
            return floor + (1 - floor) * (1 - done)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


class Rates:
    """Learning rates as a function of the step alone, so that a resumed run has nothing to restore.

    Args:
        optimizer: as made here: its groups have their full rates.
        config: of the schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainerConfig) -> None:
        self.optimizer, self.factor = optimizer, lr_factor(config)
        groups = optimizer.param_groups
        self.options = [{k: group[k] for k in ("lr", "weight_decay", "betas", "eps")} for group in groups]
        self.names = [str(group["prefix"]) for group in groups]

    def apply(self, step: int) -> None:
        """Set what step ``step`` (the first is 1) trains with; a state that was loaded had its own."""
        factor = self.factor(step - 1)
        for group, options in zip(self.optimizer.param_groups, self.options, strict=True):
            group.update(options, lr=options["lr"] * factor)

    def read(self) -> dict[str, float]:
        """``lr`` (the largest) and ``lr/NAME`` of the step that was applied last."""
        groups = zip(self.names, self.optimizer.param_groups, strict=True)
        rates = {f"lr/{name}": float(group["lr"]) for name, group in groups}
        return {"lr": max(rates.values()), **rates}
