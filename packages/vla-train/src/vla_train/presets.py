"""Framework presets: one YAML file each in ``vla_train/frameworks/``; dropping a file in adds one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from vla_core.config import Tree, is_below, leave_out, load_tree
from vla_core.errors import ConfigError, suggest

from vla_train.lost_parts import PARTS, find_lost


def list_presets() -> dict[str, str]:
    """Preset name -> its one-line description (the file's first comment)."""
    out = {}
    for file in sorted(resources.files("vla_train.frameworks").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            first = file.read_text("utf-8").splitlines()[0]
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
    return dict(yaml.safe_load((resources.files("vla_train.frameworks") / f"{name}.yaml").read_text("utf-8")))


def load_run_tree(
    paths: Sequence[Path],
    overrides: Sequence[str] = (),
    below: Tree | None = None,
    say: Callable[[str], None] | None = None,
) -> Tree:
    """The config files and overrides over the preset that ``framework.name`` names.

    A part of the preset (vlm, head, geometry, fusion) keeps its keys unless another ``name`` is given. A
    config that names vlm and head itself may have any other name: then there is no preset below it.
    Where a later file or the command line chooses another preset or another part, the options that earlier
    files gave to the first are left out with it; ``say`` gets a line for each such part.
    ``below``: what the files and overrides lie over, and the preset lies under.

    Raises:
        ConfigError: no preset of that name (with the nearest), or anything :func:`load_tree` raises.
    """
    base = below or Tree({})
    tree = load_tree(paths, overrides, base.data)
    given = tree.data.get("framework")
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        names = ", ".join(list_presets())
        raise ConfigError(f"{tree.where('framework')}'framework.name' must name a preset (known: {names})")
    try:
        preset = {} if _is_whole(given) else load_preset(given["name"])
    except ConfigError as error:
        places = Tree({}, {**base.origins, **tree.origins})
        raise ConfigError(f"{places.where('framework.name')}framework.name: {error}") from error
    for part in PARTS:
        node = given.get(part)
        if isinstance(node, dict) and "name" in node and node["name"] != (preset.get(part) or {}).get("name"):
            preset.pop(part, None)
    files = [_plain(OmegaConf.load(path)) for path in paths]
    words = _together(_plain(OmegaConf.from_dotlist([word])) for word in overrides)
    layers = [{"framework": preset}, base.data, *files, words]
    lost = find_lost(layers, lambda name: load_preset(name) if name in list_presets() else None)
    if say is not None:
        for line in lost.lines:
            say(f"config  {line}")
    of_preset, of_base, *of_files, _ = lost.keys
    lowest = OmegaConf.merge(leave_out(layers[0], of_preset), leave_out(base.data, of_base))
    # Read again over the preset, so that an override can reach into its lists.
    tree = load_tree(paths, overrides, _plain(lowest), of_files)
    origins = {key: place for key, place in base.origins.items() if not is_below(key, of_base)}
    return Tree(tree.data, {**origins, **tree.origins})


def _is_whole(given: Mapping[str, Any]) -> bool:
    """Whether no preset is needed: the config names vlm and head, and itself unlike any preset."""
    names_parts = all(isinstance(given.get(part), dict) and "name" in given[part] for part in ("vlm", "head"))
    return names_parts and not get_close_matches(given["name"], list_presets(), n=1, cutoff=0.5)


def _together(nodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Plain data of one node over the other: a list replaces entries that were named before, and they it."""
    out: dict[str, Any] = {}
    for node in nodes:
        for key, value in node.items():
            there = out.get(key)
            if isinstance(there, dict) and isinstance(value, dict):
                out[key] = _together((there, value))
            else:
                out[key] = value
    return out


def _plain(config: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(config) or {})
