"""A preset at the sizes of a smoke test: everything that is made small is chosen here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vla_core import registry
from vla_core.config import Tree
from vla_core.errors import ConfigError

from vla_train.presets import load_preset, load_run_tree

Size = Literal["tiny", "full"]

CAMERA = {"tiny": 64, "full": 224}
"""Pixels a side of the made-up robot's cameras."""

GEOMETRY_IMAGE = 112
"""Pixels a side at size tiny when a geometry encoder reads the images too: patches of 14 and of 16 fit."""

GROUPS = {
    "vlm": "vla.vlms",
    "geometry": "vla.geometry",
    "fusion": "vla.fusions",
    "head": "vla.heads",
    "auxiliary": "vla.auxiliaries",
}

# Part -> option -> small value, for the parts that have the option and unless the user sets it.
TINY: dict[str, dict[str, Any]] = {
    "vlm": {
        "base_vlm": "tiny",
        "vision": "conv_vit",
        "prompt": "{prefix}{images}{instruction}{suffix}{queries}",
        "max_text_tokens": 24,
        "dtype": "float32",
        "tiny": {
            "hidden_size": 64,
            "n_layers": 2,
            "intermediate_size": 128,
            "vision_hidden": 48,
            "vision_depth": 1,
            "vision_intermediate": 96,
            "patch_size": 16,
            "merge_size": 1,
            "deepstack": [0],
        },
    },
    "geometry": {"size": "tiny", "weights": None, "encoder_depth": 1, "sharing_depth": 2},
    "fusion": {},
    "auxiliary": {"latent_dim": 16, "hidden_dim": 32},
    "head": {
        "size": "custom",
        "width": 32,
        "mlp_width": 64,
        "n_heads": 2,
        "n_blocks": 2,
        "output_width": 32,
        "n_future_tokens": 2,
        "n_queries": 4,
        "state_hidden": 32,
        "decoder_hidden": 32,
        "dropout": 0.0,
        "steps": 2,
    },
}
# The same for true shapes: nothing is loaded, as counting needs no weights.
FULL: dict[str, dict[str, Any]] = {"geometry": {"weights": None}}


def framework_tree(name: str, size: Size, overrides: Sequence[str] = ()) -> Tree:
    """The preset ``name`` with ``overrides`` (``framework.`` may be left out), at ``size``.

    Raises:
        ConfigError: an unknown preset with the nearest names, or a malformed override.
    """
    load_preset(name)
    words = [word if word.startswith("framework.") else f"framework.{word}" for word in overrides]
    tree = load_run_tree([], [f"framework.name={name}", *words])
    framework = dict(tree.data["framework"])
    choices = TINY if size == "tiny" else FULL
    for part, group in GROUPS.items():
        config = _config_class(group, framework.get(part))
        if config is None:
            continue
        place = f"framework.{part}"
        framework[part] = _choose(config, framework[part], choices.get(part, {}), place, tree)
        if part == "vlm" and size == "full" and f"{place}.base_vlm" not in tree.origins:
            framework[part]["base_vlm"] = _published(config, framework[part], place)
    if size == "tiny" and isinstance(framework.get("transforms"), list):
        side = CAMERA["tiny"] if framework.get("geometry") is None else GEOMETRY_IMAGE
        framework["transforms"] = [
            _resized(step, side, f"framework.transforms.{i}", tree)
            for i, step in enumerate(framework["transforms"])
        ]
    return Tree({"framework": framework}, tree.origins)


def _config_class(group: str, node: Any) -> Any:
    """The part's Config; None where there is no part, or none that exists (building it says so)."""
    name = node.get("name") if isinstance(node, Mapping) else None
    return registry.load(group, name).Config if name in registry.names(group) else None


def _choose(config: Any, node: Mapping[str, Any], small: Mapping[str, Any], place: str, tree: Tree) -> Any:
    """``node`` with the small values of the options that ``config`` has and the user did not set."""
    known = {field.name: field for field in dataclasses.fields(config)}
    out = dict(node)
    for key, value in small.items():
        where = f"{place}.{key}"
        if key not in known:
            continue
        if isinstance(value, Mapping):
            inner = known[key].default_factory
            if inner is not dataclasses.MISSING and isinstance(node.get(key, {}), Mapping):
                out[key] = _choose(inner, node.get(key, {}), value, where, tree)
        elif where not in tree.origins:
            out[key] = value
    return out


def _published(config: Any, node: Mapping[str, Any], place: str) -> str:
    """The named size (random weights) with the shapes of what the preset would load."""
    sizes = [size for size in getattr(config, "SIZES", ()) if size != "tiny"]
    if not sizes:
        raise ConfigError(f"{place}: '{node['name']}' names no published size; --size full cannot build it")
    words = str(node.get("base_vlm", "")).lower().replace("/", "-").split("-")
    return next((size for size in sizes if size in words), sizes[0])


def _resized(step: Any, side: int, place: str, tree: Tree) -> Any:
    if not isinstance(step, Mapping) or step.get("name") != "resize":
        return step
    sides = {key: side for key in ("height", "width") if f"{place}.{key}" not in tree.origins}
    return {**step, **sides}
