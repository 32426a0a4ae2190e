"""Config: YAML files and ``key=value`` overrides, validated against the dataclass beside each class.

OmegaConf reads, merges and interpolates; this file adds where a value comes from (file and line),
so that an error is one line that can be acted on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla_core import _typed
from vla_core.errors import ConfigError

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
        """``"file:line: "`` of the key, of one below it or of its nearest parent; ``""`` if unknown."""
        while key:
            # A command line names what is below a key alone.
            below = (name for name in self.origins if name.startswith(f"{key}."))
            if (found := key if key in self.origins else next(below, None)) is not None:
                return f"{self.origins[found]}: "
            key = key.rpartition(".")[0]
        return ""

    def sub(self, key: str) -> Tree:
        """The subtree at a dotted key; its origins keep their full names."""
        node: Any = self.data
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            raise ConfigError(f"{self.where(key)}'{key}' must be set to a mapping")
        return Tree(dict(node), self.origins)


def _lines(node: yaml.Node, prefix: str, file: str, out: dict[str, str]) -> None:
    """Record where each key of ``node`` stands; what it replaces is forgotten."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = _typed.join(prefix, key.value)
            _record(name, f"{file}:{key.start_mark.line + 1}", out, isinstance(value, yaml.MappingNode))
            _lines(value, name, file, out)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            out[f"{prefix}.{i}"] = f"{file}:{value.start_mark.line + 1}"
            _lines(value, f"{prefix}.{i}", file, out)


def _record(name: str, place: str, out: dict[str, str], merges: bool) -> None:
    if not merges:
        for below in [key for key in out if key.startswith(f"{name}.")]:
            del out[below]
    out[name] = place


def _reason(error: Exception) -> str:
    """The part of a library's message that concerns the user, in one line."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _read(path: Path) -> tuple[DictConfig, yaml.Node | None]:
    if path.is_dir():
        raise ConfigError(f"{path}: a directory; name a config file in it")
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}: a config file must be a mapping of keys to values")
        config = OmegaConf.create(text)
        assert isinstance(config, DictConfig)
        return config, root
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except OmegaConfBaseException as error:
        origins: dict[str, str] = {}
        if root is not None:
            _lines(root, "", str(path), origins)
        raise _interpolation(error, origins) from error


def _interpolation(error: OmegaConfBaseException, origins: Mapping[str, str]) -> ConfigError:
    # OmegaConf writes a.b[0].c where the origins have a.b.0.c.
    key = re.sub(r"\[(\w+)\]", r".\1", str(error.full_key or ""))
    return ConfigError(f"{Tree({}, origins).where(key)}'{key}': {_reason(error)}")


def _override(merged: DictConfig, text: str, origins: dict[str, str]) -> None:
    key, _, value = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_][\w\-]*(\.[\w\-]+)*", key) or "=" not in text:
        raise ConfigError(f"command line: '{text}' is not of the form key=value (or a.b=value)")
    try:
        parsed = OmegaConf.from_dotlist([f"value={value}"])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        hint = (
            "quote it?" if ":" not in value else "quote it? In braces a colon wants a space after it: {a: 1}"
        )
        raise ConfigError(f"command line: '{text}': the value is not valid YAML ({hint})") from error
    new = parsed._get_node("value")
    plain = cast("dict[str, Any]", OmegaConf.to_container(parsed))["value"]
    try:
        OmegaConf.update(merged, key, new if isinstance(plain, (dict, list)) else plain, merge=True)
    except IndexError as error:
        raise ConfigError(f"command line: '{text}': {_beyond(merged, key)}") from error
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        # Names below a list.
        raise ConfigError(f"command line: '{text}': {_reason(error)}") from error
    _record(key, "command line", origins, isinstance(plain, dict))
    if isinstance(plain, (dict, list)):
        for name in _names(plain, key):
            origins[name] = "command line"


def _beyond(merged: DictConfig, key: str) -> str:
    """What to say of a key that has an index which its list does not have."""
    *above, _ = parts = key.split(".")
    for end in range(len(above), 0, -1):
        node, index = OmegaConf.select(merged, ".".join(parts[:end])), parts[end]
        if isinstance(node, ListConfig):
            many = "1 entry, and it has" if len(node) == 1 else f"{len(node)} entries, the first of which has"
            has = f"{many} index 0" if node else "no entry"
            return f"'{'.'.join(parts[:end])}' has {has}; {index} is none"
    return "no such entry"


def _names(node: Any, prefix: str) -> list[str]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    return [name for k, v in items for name in [f"{prefix}.{k}", *_names(v, f"{prefix}.{k}")]]


def is_below(name: str, keys: Collection[str]) -> bool:
    """Whether a dotted name is one of the keys or stands below one."""
    return any(f"{name}.".startswith(f"{key}.") for key in keys)


def leave_out(node: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """A copy of plain data without what stands at these dotted keys (a number is a list index)."""
    copy = deepcopy(dict(node))
    for key in keys:
        *above, last = key.split(".")
        at: Any = copy
        for name in above:
            at = at[int(name)] if isinstance(at, list) else at.get(name, {})
        at.pop(last, None)
    return copy


def load_tree(
    paths: Sequence[Path],
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    without: Sequence[Collection[str]] = (),
) -> Tree:
    """Merge ``defaults``, then the files in order, then ``key=value`` overrides.

    Mappings merge, everything else is replaced. A number in an override's key is a list index.
    ``without``: for each file the dotted keys that are left out of it; empty: none.

    Raises:
        ConfigError: a missing file, bad YAML, a malformed override or a broken interpolation.
    """
    merged = OmegaConf.create(dict(defaults or {}))
    origins: dict[str, str] = {}
    for path, lost in zip(paths, without or [()] * len(paths), strict=True):
        config, root = _read(path)
        if lost:
            config = OmegaConf.create(leave_out(cast("dict[str, Any]", OmegaConf.to_container(config)), lost))
        merged = cast(DictConfig, OmegaConf.merge(merged, config))
        if root is not None:
            _lines(root, "", str(path), origins)
        for name in [name for name in origins if is_below(name, lost)]:
            del origins[name]
    for override in overrides:
        _override(merged, override, origins)
    try:
        data = cast("dict[str, Any]", OmegaConf.to_container(merged, resolve=True))
    except OmegaConfBaseException as error:
        raise _interpolation(error, origins) from error
    return Tree(data, origins)


def build_config(cls: type[T], node: Mapping[str, Any], where: str = "", tree: Tree | None = None) -> T:
    """An instance of the dataclass ``cls`` from a plain node.

    Args:
        cls: a dataclass, possibly nested; its defaults fill absent keys.
        node: plain data, e.g. ``{"n_blocks": 4}``.
        where: dotted key of the node, named in errors.
        tree: the config the node is part of, for file and line.

    Raises:
        ConfigError: unknown key (with the nearest name), wrong type, missing mandatory key (one
            without a default or with OmegaConf's ``MISSING``), or whatever ``ValueError`` the
            dataclass' own ``__post_init__`` raises.
    """
    origins = tree or Tree({})

    def fail(key: str, problem: str) -> NoReturn:
        line = " ".join(problem.split())
        if line.startswith("unknown key"):
            raise ConfigError(f"{origins.where(key)}unknown key '{key}'{line[len('unknown key') :]}")
        if not key:
            raise ConfigError(f"{origins.where(where)}{line}")
        raise ConfigError(f"{origins.where(key)}'{key}'{' ' if line == 'must be set' else ': '}{line}")

    if not isinstance(node, Mapping):
        fail(where or cls.__name__, f"expected a mapping, got {node!r}")
    return _typed.construct(cls, node, where, fail)


def to_plain(config: Any) -> dict[str, Any]:
    """The plain nested data of a config dataclass (tuples become lists, paths text), for YAML and JSON."""
    return _typed.plain(config)
