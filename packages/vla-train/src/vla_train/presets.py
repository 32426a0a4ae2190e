"""Framework presets: one YAML file each in ``vla_train/frameworks/``; dropping a file in adds one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from vla_core.config import Tree, load_tree
from vla_core.errors import ConfigError, suggest

PARTS = ("vlm", "head", "geometry", "fusion")


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


def _merge_part(preset: Any, given: Any) -> Any:
    """A part's node: another ``name`` starts afresh, the same part's keys are merged."""
    if not isinstance(preset, dict) or not isinstance(given, dict):
        return given
    if "name" in given and given["name"] != preset.get("name"):
        return given
    return OmegaConf.to_container(OmegaConf.merge(preset, given))


def load_run_tree(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Tree:
    """The config files and overrides over the preset that ``framework.name`` names."""
    tree = load_tree(paths, overrides)
    given = tree.data.get("framework")
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        names = ", ".join(list_presets())
        raise ConfigError(f"{tree.where('framework')}'framework.name' must name a preset (known: {names})")
    try:
        preset = load_preset(given["name"])
    except ConfigError as error:
        raise ConfigError(f"{tree.where('framework.name')}framework.name: {error}") from error
    framework = {**preset, **given}
    for part in PARTS:
        if part in given and part in preset:
            framework[part] = _merge_part(preset[part], given[part])
    return Tree({**tree.data, "framework": framework}, tree.origins)
