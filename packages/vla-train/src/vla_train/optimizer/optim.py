"""Parameter groups, freezing and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from vla_core.errors import ConfigError, suggest

from vla_train.config import TrainerConfig
from vla_train.parts import shape


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


def named(model: nn.Module, entry: str, key: str) -> set[str]:
    """Names of the parameters below a module, or of those whose whole name a regex matches.

    Raises:
        ConfigError: naming ``key``: an entry that names no module and matches no parameter, or a module
            without any.
    """
    names = [name for name, _ in model.named_parameters()]
    modules = _modules(model)
    if entry in modules:
        found = {name for name in names if _under(name, entry)}
        if not found:
            raise ConfigError(f"{key}: the module '{entry}' has no parameters")
        return found
    try:
        found = {name for name in names if re.fullmatch(entry, name)}
    except re.error:
        found = set()
    if not found:
        _check(entry, key, modules)
    return found


def freeze(model: nn.Module, entries: Iterable[str]) -> None:
    """Switch off the gradients of what each entry of ``trainer.freeze_modules`` names (:func:`named`).

    Raises:
        ConfigError: an entry that names nothing.
    """
    parameters = dict(model.named_parameters())
    for entry in entries:
        for name in named(model, entry, "trainer.freeze_modules"):
            parameters[name].requires_grad_(False)


def parameter_groups(
    model: nn.Module, config: TrainerConfig, starts: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """AdamW groups: learning rate by the longest matching module prefix, no decay on vectors.

    ``starts``: parameter -> the step from which on it trains, where that is not the first.
    """
    rates = config.learning_rates()
    modules = _modules(model)
    for prefix in rates:
        if prefix != "base":
            _check(prefix, "trainer.learning_rate", modules)
    groups: dict[tuple[str, bool, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matching = [p for p in rates if p != "base" and _under(name, p)]
        prefix = max(matching, key=len, default="base")
        decays = len(shape(parameter)) >= 2
        start = (starts or {}).get(name, 1)
        group = groups.setdefault(
            (prefix, decays, start),
            {
                "params": [],
                "lr": rates[prefix],
                "weight_decay": config.weight_decay if decays else 0.0,
                "prefix": prefix,
                "start": start,
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
        warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
        if config.schedule == "wsd":
            left = max(0.0, min(1.0, (total - step) / decay))
            # Where warm-up reaches into the decay nothing jumps.
            return min(warm, floor + (1 - floor) * left)
        if step < warmup or config.schedule == "constant":
            return warm
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        if config.schedule == "linear":
            return floor + (1 - floor) * (1 - done)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def never_full(config: TrainerConfig) -> list[str]:
    """A line where no step trains with the full rate."""
    total, warmup = config.max_steps, config.warmup()
    decay = max(1, round(total * config.decay_ratio)) if config.schedule == "wsd" else 1
    stable = total - decay
    if warmup <= stable + 1:
        return []
    factor = lr_factor(config)
    most = max(factor(step) for step in range(stable, min(warmup, total)))
    key = "warmup_steps" if config.warmup_ratio is None else "warmup_ratio"
    return [
        f"trainer.{key}: {warmup} of {total} steps warm up; the learning rate reaches "
        f"{100 * most:.0f} % of what is set"
    ]


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
        self.starts = [int(group["start"]) for group in groups]

    def apply(self, step: int) -> None:
        """Set what step ``step`` (the first is 1) trains with; a state that was loaded had its own."""
        factor = self.factor(step - 1)
        groups = self.optimizer.param_groups
        for group, options, start in zip(groups, self.options, self.starts, strict=True):
            group.update(options, lr=options["lr"] * factor if step >= start else 0.0)

    def read(self) -> dict[str, float]:
        """``lr`` (the largest) and ``lr/NAME`` of the step that was applied last."""
        rates: dict[str, float] = {}
        for name, group in zip(self.names, self.optimizer.param_groups, strict=True):
            # Of the groups of one name some may wait.
            rates[f"lr/{name}"] = max(float(group["lr"]), rates.get(f"lr/{name}", 0.0))
        return {"lr": max(rates.values()), **rates}
