"""Framework presets: one YAML file each in ``vla_train/frameworks/``; dropping a file in adds one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from vla_core import registry
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


def load_run_tree(
    paths: Sequence[Path],
    overrides: Sequence[str] = (),
    below: Tree | None = None,
    say: Callable[[str], None] | None = None,
) -> Tree:
    """The config files and overrides over the preset that ``framework.name`` names.

    A part of the preset (vlm, head, geometry, fusion) keeps its keys unless another ``name`` is given.
    Where a later file or the command line chooses another preset, the options that earlier files gave to a
    part of the first are left out with that part; ``say`` gets a line for each.
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
    earlier = _files_before_the_name(paths, overrides)
    if earlier:
        old = _without_lost_parts(_over(base, origins, paths[:earlier], ()), tree, preset, say)
        base, origins, paths = old.data, old.origins, paths[earlier:]
        tree = _over(base, origins, paths, overrides)
        given = tree.data["framework"]
    for part in PARTS:
        node = given.get(part)
        if isinstance(node, dict) and "name" in node and node["name"] != (preset.get(part) or {}).get("name"):
            preset.pop(part, None)
    # Read again over the preset, so that an override can reach into its lists.
    merged = OmegaConf.to_container(OmegaConf.merge({"framework": preset}, base))
    return _over(cast(dict[str, Any], merged), origins, paths, overrides)


def _files_before_the_name(paths: Sequence[Path], overrides: Sequence[str]) -> int:
    """How many of the files come before the last one, or the command line, that names a preset."""
    if any(word.startswith("framework.name=") for word in overrides):
        return len(paths)
    naming = [i for i, path in enumerate(paths) if OmegaConf.select(OmegaConf.load(path), "framework.name")]
    return naming[-1] if naming else 0


def _without_lost_parts(
    old: Tree, tree: Tree, preset: Mapping[str, Any], say: Callable[[str], None] | None
) -> Tree:
    """The earlier files ``old``, less their options of parts that the new preset replaces."""
    framework = old.data.get("framework")
    first = framework.get("name") if isinstance(framework, dict) else None
    if not isinstance(framework, dict) or first not in list_presets() or first == preset["name"]:
        return old
    kept, origins = dict(framework), dict(old.origins)
    for part in PARTS:
        options, merged = framework.get(part), tree.data["framework"].get(part)
        if not isinstance(options, dict) or not isinstance(merged, dict):
            continue
        before = options.get("name") or (load_preset(first).get(part) or {}).get("name")
        after = merged.get("name") or (preset.get(part) or {}).get("name")
        if before == after:
            continue
        del kept[part]
        # Backbones mean the same by the same option (base_vlm, max_text_tokens); heads and fusions do not.
        shared = _known(registry.load("vla.vlms", after).Config, options) if part == "vlm" and after else {}
        if shared:
            kept[part] = shared
        left = _lost(options, shared)
        gone = tuple(f"framework.{part}.{name}." for name in left)
        origins = {key: place for key, place in origins.items() if not f"{key}.".startswith(gone)}
        if say is not None and left:
            now = f"{part} {after}" if after else f"no {part}"
            listed = ", ".join(left)
            say(f"framework  {preset['name']} has {now}: options of {part} {before} are left out ({listed})")
    return Tree({**old.data, "framework": kept}, origins)


def _known(config: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the Config has a field for, in nested configs too."""
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.name not in options:
            continue
        value = options[field.name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if isinstance(value, Mapping) and dataclasses.is_dataclass(default):
            value = _known(type(default), value)
        kept[field.name] = value
    return kept


def _lost(options: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """Dotted names of the options that ``kept`` has not; the part's own name is none."""
    lost = []
    for name, value in options.items():
        if name not in kept and name != "name":
            lost.append(name)
        elif isinstance(value, Mapping) and isinstance(kept.get(name), Mapping):
            lost += [f"{name}.{inner}" for inner in _lost(value, kept[name])]
    return lost


def _over(
    base: Mapping[str, Any], origins: Mapping[str, str], paths: Sequence[Path], overrides: Sequence[str]
) -> Tree:
    tree = load_tree(paths, overrides, defaults=base)
    return Tree(tree.data, {**origins, **tree.origins})
