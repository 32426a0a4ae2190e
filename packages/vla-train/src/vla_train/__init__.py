"""Compose Vision-Language-Action policies from config and train them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_train.composition import Composed, compose
    from vla_train.trainer import Trainer

__all__ = ["Composed", "Trainer", "compose"]

_WHERE = {
    "Composed": "vla_train.composition",
    "Trainer": "vla_train.trainer",
    "compose": "vla_train.composition",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'vla_train' has no attribute '{name}'")
