"""Heads as other systems trained them, each a class of its own, chosen by ``compat`` in a head's config.

Imported only where a config asks for one; the heads themselves know nothing of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vla_core.errors import ConfigError

_CLASSES = {
    "adapter": {"starvla": "vla_heads.compat.adapter:StarVLAAdapter"},
    "fast": {"starvla": "vla_heads.compat.fast:StarVLAFAST"},
    "groot_flow": {"starvla": "vla_heads.compat.groot_flow:StarVLAGR00T"},
    "layerwise_fm": {
        "starvla": "vla_heads.compat.layerwise:StarVLALayerwise",
        "starvla_llava3d": "vla_heads.compat.llava3d:Llava3DLayerwise",
    },
}


def choose(head: str, compat: str, plain: Any) -> Any:
    """The class that ``compat`` names for ``head`` (its entry point): ``none`` is ``plain``.

    Raises:
        ConfigError: the head has no such class.
    """
    known = _CLASSES[head]
    if compat == "none":
        return plain
    if compat not in known:
        *most, last = (f"'{value}'" for value in ("none", *known))
        raise ConfigError(f"compat: '{compat}' must be {', '.join(most)} or {last}")
    module, _, name = known[compat].partition(":")
    return getattr(import_module(module), name)
