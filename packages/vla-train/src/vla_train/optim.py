"""Parameter groups, freezing and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

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


def freeze(model: nn.Module, prefixes: Iterable[str]) -> None:
    """Switch gradients off below each module prefix.

    Raises:
        ConfigError: a prefix that names no module.
    """
    modules = _modules(model)
    for prefix in prefixes:
        _check(prefix, "trainer.freeze_modules", modules)
        model.get_submodule(prefix).requires_grad_(False)


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
    """Step -> factor on the learning rate: linear warm-up, then constant or cosine."""
    warmup, total, floor = config.warmup_steps, config.max_steps, config.min_lr_ratio

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return factor
