"""What the class of a part must have, told when it is looked up and not when a run first needs it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from vla_core.errors import ConfigError

METHODS: Mapping[str, tuple[str, Sequence[str]]] = {
    "vla.vlms": (
        "interfaces.VisionLanguageModel",
        ("build", "save_assets", "collator", "embed_text", "embed_images", "__call__"),
    ),
    "vla.geometry": ("interfaces.GeometryEncoder", ("build", "__call__")),
    "vla.fusions": ("interfaces.Fusion", ("build", "__call__", "loss")),
    "vla.heads": ("interfaces.ActionHead", ("build", "request", "__call__", "sample")),
    "vla.sources": ("sources.Source", ("list_episodes", "__len__", "__getitem__", "numeric", "episode")),
    "vla.envs": ("envs.Env", ("tasks", "reset", "step", "close")),
}
"""Group of entry points -> its protocol in ``vla_core``, and the methods of that; a test keeps them equal."""


def check_complete(group: str, part: Any, what: str) -> None:
    """Refuse a class that lacks a method of its group's protocol, or has no ``Config``.

    What its instances alone have is believed: attributes that it annotates, and all of one that answers for
    another object (``__getattr__``).

    Raises:
        ConfigError: with all that is missing.
    """
    if group not in METHODS:
        return
    protocol, methods = METHODS[group]
    missing = [f"{name}()" for name in methods if not _hands_on(part) and not _has(part, name)]
    if not isinstance(getattr(part, "Config", None), type):
        missing.insert(0, "Config")
    if missing:
        raise ConfigError(f"{what} lacks {', '.join(missing)}: see vla_core.{protocol}")


def _hands_on(part: Any) -> bool:
    """Whether instances look elsewhere for what they lack; modules of torch do, for their own parts."""
    hook = getattr(part, "__getattr__", None)
    return hook is not None and not str(getattr(hook, "__module__", "")).startswith("torch.")


def _has(part: Any, name: str) -> bool:
    if not isinstance(part, type):
        return callable(getattr(part, name, None))
    if name == "__call__":
        # Every class can be called, and every module of torch until it looks for forward().
        unwritten = getattr(getattr(part, "forward", None), "__name__", "") == "_forward_unimplemented"
        return any(name in vars(base) for base in part.__mro__) and not unwritten
    return callable(getattr(part, name, None)) or any(
        name in inspect.get_annotations(base) for base in part.__mro__
    )
