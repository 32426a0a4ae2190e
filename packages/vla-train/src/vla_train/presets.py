"""Framework presets: one YAML file each in ``vla_train/frameworks/``; dropping a file in adds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from vla_core.config import Tree, load_tree
from vla_core.errors import ConfigError, suggest

PARTS = ("vlm", "head", "geometry", "fusion", "auxiliary")


def list_presets() -> dict[str, str]:
    """Preset name -> its one-line description (the file's first comment)."""
    out = {}
    for file in sorted(resources.files("vla_train.frameworks").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            first = file.read_text().splitlines()[0]
            out[file.name.removesuffix(".yaml")] = first.removeprefix("#").strip()
    return out


def load_preset(name: str) -> dict[str, Any]:
    """The ``framework`` section of a preset.

    Raises:
        ConfigError: unknown name, with the nearest.
    """
    known = list_presets()
    if name not in known:
        raise ConfigError(f"no framework '{name}'{suggest(name, known)}")
    return dict(yaml.safe_load((resources.files("vla_train.frameworks") / f"{name}.yaml").read_text()))


def load_run_tree(paths: Sequence[Path], overrides: Sequence[str] = (), below: Tree | None = None) -> Tree:
    """The config files and overrides over the preset that ``framework.name`` names.

    A part of the preset (vlm, head, geometry, fusion) keeps its keys unless another ``name`` is given.
    ``below``: what the files and overrides lie over, and the preset lies under.

    Raises:
        ConfigError: no preset of that name (with the nearest), or anything :func:`load_tree` raises.
    """
    base, origins = (below.data, below.origins) if below is not None else ({}, {})
    tree = _over(base, origins, paths, overrides)
    given = tree.data.get("framework")
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        names = ", ".join(list_presets())
        raise ConfigError(f"{tree.where('framework')}'framework.name' must name a preset (known: {names})")
    try:
        preset = load_preset(given["name"])
    except ConfigError as error:
        raise ConfigError(f"{tree.where('framework.name')}framework.name: {error}") from error
    for part in PARTS:
        node = given.get(part)
        if isinstance(node, dict) and "name" in node and node["name"] != (preset.get(part) or {}).get("name"):
            preset.pop(part, None)
    # Read again over the preset, so that an override can reach into its lists.
    merged = OmegaConf.to_container(OmegaConf.merge({"framework": preset}, base))
    return _over(cast(dict[str, Any], merged), origins, paths, overrides)


def _over(
    base: Mapping[str, Any], origins: Mapping[str, str], paths: Sequence[Path], overrides: Sequence[str]
) -> Tree:
    tree = load_tree(paths, overrides, defaults=base)
    return Tree(tree.data, {**origins, **tree.origins})
