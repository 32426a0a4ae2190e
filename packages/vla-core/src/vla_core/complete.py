"""What the class of a part must have, told when it is looked up and not when a run first needs it."""

from __future__ import annotations

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

    Raises:
        ConfigError: with all that is missing.
    """
    if group not in METHODS:
        return
    protocol, methods = METHODS[group]
    missing = [f"{name}()" for name in methods if not callable(getattr(part, name, None))]
    if not isinstance(getattr(part, "Config", None), type):
        missing.insert(0, "Config")
    if missing:
        raise ConfigError(f"{what} lacks {', '.join(missing)}: see vla_core.{protocol}")
