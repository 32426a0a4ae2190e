"""Config: YAML files and ``key=value`` overrides, validated against the dataclass beside each class.

OmegaConf does the merging, interpolation and type conversion; this file adds where a value comes
from (file and line) and the nearest valid name, so that an error is one line that can be acted on.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla_core.errors import ConfigError, suggest

T = TypeVar("T")


@dataclass(frozen=True)
class Tree:
    """A merged but not yet validated config.

    Args:
        data: plain nested data with interpolations resolved.
        origins: dotted key -> ``file:line`` (or ``command line``) that set it last.
    """

    data: dict[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """``"file:line: "`` of the key or its nearest recorded parent, ``""`` if unknown."""
        while key:
            if key in self.origins:
                return f"{self.origins[key]}: "
            key = key.rpartition(".")[0]
        return ""

    def sub(self, key: str) -> Tree:
        """The subtree at a dotted key; its origins keep their full names."""
        node: Any = self.data
        for part in key.split("."):
            node = node[part]
        return Tree(dict(node), self.origins)


def _lines(node: yaml.Node, prefix: str, file: str, out: dict[str, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            out[name] = f"{file}:{key.start_mark.line + 1}"
            _lines(value, name, file, out)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            out[f"{prefix}.{i}"] = f"{file}:{value.start_mark.line + 1}"
            _lines(value, f"{prefix}.{i}", file, out)


def _read(path: Path) -> tuple[DictConfig, dict[str, str]]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    text = path.read_text()
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        config = OmegaConf.create(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: a config file must be a mapping of keys to values")
    origins: dict[str, str] = {}
    if root is not None:
        _lines(root, "", str(path), origins)
    return config, origins


def _flatten(node: Any, prefix: str) -> list[str]:
    keys = [prefix] if prefix else []
    if isinstance(node, Mapping):
        for key, value in node.items():
            keys += _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return keys


def load_tree(
    paths: Sequence[Path], overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> Tree:
    """Merge ``defaults``, then the files in order, then ``key=value`` overrides.

    Raises:
        ConfigError: a missing file, bad YAML, a malformed override or a broken interpolation.
    """
    merged = OmegaConf.create(dict(defaults or {}))
    origins: dict[str, str] = {}
    for path in paths:
        config, lines = _read(path)
        merged = OmegaConf.merge(merged, config)  # type: ignore[assignment]
        origins.update(lines)
    for override in overrides:
        if not re.match(r"^[A-Za-z_][\w.\-]*=", override):
            raise ConfigError(f"command line: '{override}' is not of the form key=value")
        try:
            parsed = OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"command line: '{override}': value is not valid YAML") from error
        merged = OmegaConf.merge(merged, parsed)  # type: ignore[assignment]
        for key in _flatten(OmegaConf.to_container(parsed), ""):
            if "=" in override and override.split("=", 1)[0].startswith(key):
                origins.setdefault(key, "command line")
        origins[override.split("=", 1)[0]] = "command line"
    try:
        data = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{_first_line(error)}") from error
    return Tree(data, origins)  # type: ignore[arg-type]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _check_keys(cls: type, node: Mapping[str, Any], prefix: str, tree: Tree) -> None:
    known = {f.name: f for f in dataclasses.fields(cls)}
    hints = OmegaConf.structured(cls)
    for key, value in node.items():
        name = _join(prefix, str(key))
        if key not in known:
            raise ConfigError(f"{tree.where(name)}unknown key '{name}'{suggest(str(key), known)}")
        inner = OmegaConf.get_type(hints, str(key)) if isinstance(value, Mapping) else None
        if inner is not None and dataclasses.is_dataclass(inner):
            _check_keys(inner, value, name, tree)


def build_config(cls: type[T], node: Mapping[str, Any], where: str = "", tree: Tree | None = None) -> T:
    """An instance of the dataclass ``cls`` from a plain node.

    Args:
        cls: a dataclass, possibly nested; its defaults fill absent keys.
        node: plain data, e.g. ``{"n_blocks": 4}``.
        where: dotted key of the node, named in errors.
        tree: the config the node is part of, for file and line.

    Raises:
        ConfigError: unknown key (with the nearest name), wrong type, missing mandatory key, or
            whatever ``ValueError`` the dataclass' own ``__post_init__`` raises.
    """
    tree = tree or Tree({})
    if not isinstance(node, Mapping):
        raise ConfigError(f"{tree.where(where)}'{where}' must be a mapping, got {node!r}")
    _check_keys(cls, node, where, tree)
    base = OmegaConf.structured(cls)
    for key, value in node.items():
        name = _join(where, str(key))
        try:
            base = OmegaConf.merge(base, {key: value})
        except OmegaConfBaseException as error:
            inner = getattr(error, "full_key", None)
            name = _join(where, str(inner)) if inner else name
            reason = _first_line(error)
            if "$VALUE" in reason:
                reason = f"value {value!r} has the wrong type"
            raise ConfigError(f"{tree.where(name)}'{name}': {reason}") from error
    missing = sorted(OmegaConf.missing_keys(base))
    if missing:
        raise ConfigError(f"{tree.where(where)}'{_join(where, missing[0])}' must be set")
    try:
        return OmegaConf.to_object(base)  # type: ignore[return-value]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{tree.where(where)}'{where or cls.__name__}': {_first_line(error)}") from error


def to_plain(config: Any) -> dict[str, Any]:
    """The plain nested data of a config dataclass (tuples become lists), for YAML and JSON."""
    return OmegaConf.to_container(OmegaConf.structured(config), resolve=True)  # type: ignore[return-value]
