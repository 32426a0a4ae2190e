"""Which runs an ablation has: variants, validated and resolved before the first of them starts."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_core.config import Tree, build_config, to_plain
from vla_core.errors import ConfigError, UserError
from vla_core.framework import FrameworkConfig
from vla_core.resolve import resolve_part

from vla_train.ablate.axes import OURS, Axis, Value, check_apart
from vla_train.config import RunConfig
from vla_train.presets import load_run_tree

Load = Callable[[Sequence[Path], Sequence[str]], Tree]
"""Reads config files and overrides."""


@dataclass(frozen=True)
class Variant:
    """One cell of the cross product.

    ``axes`` maps axis to value, ``keys`` are the config keys they set; ``config`` is the resolved config
    without seed and place of the run.
    """

    label: str
    axes: Mapping[str, str]
    keys: tuple[str, ...]
    files: tuple[Path, ...]
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    load: Load = load_run_tree

    @property
    def folder(self) -> str:
        """A folder name that no other label has."""
        plain = re.sub(r"[^A-Za-z0-9._=-]+", "_", self.label)[:80]
        if plain == self.label:
            return plain
        return f"{plain}-{hashlib.sha256(self.label.encode()).hexdigest()[:6]}"

    def tree(self, seed: int, root: Path, resume: bool) -> Tree:
        """The config of one run, in ``root/folder/seed_N``."""
        own = [f"seed={seed}", f"run_id=seed_{seed}", f"trainer.resume={str(resume).lower()}"]
        # As data and not as an override: a path may hold anything.
        tree = self.load(self.files, [*self.overrides, *own])
        return Tree({**tree.data, "run_root_dir": str(root / self.folder)}, tree.origins)


@dataclass(frozen=True)
class Plan:
    """Variants x seeds, and the base they share."""

    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    base: tuple[Path, ...]
    overrides: tuple[str, ...]


def resolve(tree: Tree) -> dict[str, Any]:
    """The resolved config of a variant, as plain JSON data; neither data nor policy is opened.

    Raises:
        ConfigError: one line that names file, key and fix.
    """
    config = build_config(RunConfig, tree.data, "", tree)
    framework = build_config(FrameworkConfig, config.framework, "framework", tree)
    try:
        branch = framework.has_geometry
    except ConfigError as error:
        raise ConfigError(f"{tree.where('framework.use_geometric_branch')}{error}") from error
    nodes: dict[str, Any] = {
        "vlm": resolve_part("vla.vlms", framework.vlm, "framework.vlm", tree).node,
        "head": resolve_part("vla.heads", framework.head, "framework.head", tree).node,
        "geometry": None,
        "fusion": None,
        "use_geometric_branch": branch,
    }
    if branch:
        geometry, fusion = framework.geometry or {}, framework.fusion or {}
        nodes["geometry"] = resolve_part("vla.geometry", geometry, "framework.geometry", tree).node
        nodes["fusion"] = resolve_part("vla.fusions", fusion, "framework.fusion", tree).node
    if framework.auxiliary is not None:
        part = resolve_part("vla.auxiliaries", framework.auxiliary, "framework.auxiliary", tree)
        nodes["auxiliary"] = part.node
    plain = to_plain(config)
    plain["framework"] = {**to_plain(framework), **nodes}
    for key in OURS:
        section, _, name = key.rpartition(".")
        del (plain[section] if section else plain)[name]
    return dict(json.loads(json.dumps(plain)))


def _label(axes: Sequence[Axis], values: Sequence[Value]) -> str:
    return ",".join(
        value.label if value.file and axis.name == "config" else f"{axis.name}={value.label}"
        for axis, value in zip(axes, values, strict=True)
    )


def make_plan(
    base: Sequence[Path],
    axes: Sequence[Axis],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    load: Load = load_run_tree,
) -> Plan:
    """Every variant, validated; ``load`` reads their configs.

    Raises:
        UserError: axes or overrides that set the same key, a config that is not valid, or two variants
            that are the same run.
    """
    if not axes:
        raise UserError("--axis is missing, e.g. --axis fusion=none,mean_pool,gated")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("--seeds must list different whole numbers, e.g. 0,1,2")
    if out_of_range := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise UserError(f"--seeds must be in [0, 4294967295], got {out_of_range[0]}")
    check_apart(axes, overrides)
    variants: list[Variant] = []
    for values in itertools.product(*(axis.values for axis in axes)):
        files = (*base, *(value.file for value in values if value.file))
        words = (*overrides, *(word for value in values for word in value.overrides))
        label = _label(axes, values)
        config = resolve(load(files, words))
        for other in variants:
            if other.config == config:
                raise UserError(f"'{other.label}' and '{label}' are the same config; leave one out")
        named = {axis.name: value.label for axis, value in zip(axes, values, strict=True)}
        keys = tuple(dict.fromkeys(key for axis in axes for key in axis.keys))
        variants.append(Variant(label, named, keys, files, words, config, load))
    return Plan(tuple(variants), tuple(seeds), tuple(base), tuple(overrides))
