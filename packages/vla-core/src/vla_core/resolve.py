"""One resolution of a framework section: every part looked up, its config validated, nothing built yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vla_core import registry
from vla_core.config import Tree, build_config, to_plain
from vla_core.errors import ConfigError
from vla_core.framework import FrameworkConfig


@dataclass(frozen=True)
class Part:
    """A part's class, its validated config and the plain node that gives it again."""

    cls: Any
    config: Any
    node: dict[str, Any]

    @property
    def name(self) -> str:
        """Its entry point."""
        return str(self.node["name"])


@dataclass(frozen=True)
class Resolved:
    """A framework whose parts are known. ``tree`` is where the config comes from, for errors."""

    config: FrameworkConfig
    vlm: Part
    head: Part
    geometry: Part | None = None
    fusion: Part | None = None
    auxiliary: Part | None = None
    tree: Tree | None = None

    def place(self, key: str) -> str:
        """``file:line: `` of a key, or nothing."""
        return place(self.tree, key)


def place(tree: Tree | None, key: str) -> str:
    """``file:line: `` of a key, or nothing without a tree."""
    return tree.where(key) if tree else ""


def resolve_part(group: str, node: Mapping[str, Any], where: str, tree: Tree | None = None) -> Part:
    """Look up ``node['name']`` in ``group`` and validate the rest against its ``Config``."""
    at = place(tree, where)
    if not isinstance(node, Mapping):
        raise ConfigError(f"{at}'{where}' must be set, e.g. {where.rpartition('.')[2]}: {{name: ...}}")
    name = node.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{at}'{where}.name' must name a part (known: {', '.join(registry.names(group))})")
    try:
        cls = registry.load(group, name)
    except ConfigError as error:
        raise ConfigError(f"{place(tree, f'{where}.name')}{where}.name: {error}") from error
    config = build_config(cls.Config, {k: v for k, v in node.items() if k != "name"}, where, tree)
    return Part(cls, config, {"name": name, **to_plain(config)})


def resolve(config: FrameworkConfig, tree: Tree | None = None) -> Resolved:
    """Look up and validate all parts that ``config`` names.

    Raises:
        ConfigError: naming the key, its file and line, and the fix.
    """
    vlm = resolve_part("vla.vlms", config.vlm, "framework.vlm", tree)
    head = resolve_part("vla.heads", config.head, "framework.head", tree)
    auxiliary = None
    if config.auxiliary is not None:
        auxiliary = resolve_part("vla.auxiliaries", config.auxiliary, "framework.auxiliary", tree)
    geometry = fusion = None
    try:
        branch = config.has_geometry
    except ConfigError as error:
        raise ConfigError(f"{place(tree, 'framework.use_geometric_branch')}{error}") from error
    if branch:
        geometry = resolve_part("vla.geometry", config.geometry or {}, "framework.geometry", tree)
        fusion = resolve_part("vla.fusions", config.fusion or {}, "framework.fusion", tree)
    complete = replace(
        config,
        vlm=vlm.node,
        head=head.node,
        geometry=geometry.node if geometry else None,
        fusion=fusion.node if fusion else None,
        auxiliary=auxiliary.node if auxiliary else None,
        use_geometric_branch=branch,
    )
    return Resolved(complete, vlm, head, geometry, fusion, auxiliary, tree)
