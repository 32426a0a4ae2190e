"""Plain data to dataclasses by their annotations; every failure names the dotted key.

Numbers may arrive as text (command lines write them so) and are converted where nothing is lost;
nothing else is: ``2.5`` is no int, ``null`` is a value only where the annotation says so.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from omegaconf import MISSING

from vla_core.errors import ConfigError, suggest
from vla_core.ranges import ELSEWHERE, Range, bare, hints

Fail = Callable[[str, str], NoReturn]
"""Raises the error for (dotted key, what is wrong with it)."""

ANY = Range()
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_LISTS = (list, tuple, Sequence)
_MAPPINGS = (dict, Mapping)


def join(prefix: str, key: object) -> str:
    """The dotted key of ``key`` below ``prefix``."""
    return f"{prefix}.{key}" if prefix else str(key)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def describe(hint: Any) -> str:
    """A type in words, for messages."""
    hint, limits = bare(hint)
    if limits is not None:
        return f"{describe(hint)} {limits}".strip()
    if hint is type(None):
        return "null"
    if _is_union(hint):
        return " or ".join(describe(arg) for arg in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(member.name for member in hint)}"
    container = get_origin(hint) or hint
    if container in _LISTS:
        return "a list"
    if container in _MAPPINGS or dataclasses.is_dataclass(hint):
        return "a mapping"
    return {
        "int": "an int",
        "float": "a float",
        "str": "text",
        "bool": "true or false",
        "Path": "a path",
    }.get(getattr(hint, "__name__", ""), str(hint))


def _number(cls: type, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str) if cls is int else (int, float, str)):
        raise ValueError
    return cls(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise ValueError


def _scalar(hint: Any, value: Any) -> Any:
    """``value`` as the scalar type ``hint``; ValueError if it is none."""
    if hint in (int, float):
        return _number(hint, value)
    if hint is bool:
        return _boolean(value)
    if hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum) and isinstance(value, str):
        if value in hint.__members__:
            return hint[value]
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise ValueError


def _fits(hint: Any, value: Any) -> bool:
    """Whether ``value`` is of the kind ``hint`` without conversion (to choose within a union)."""
    hint, _ = bare(hint)
    container = get_origin(hint) or hint
    if container in _LISTS:
        return isinstance(value, (list, tuple))
    if container in _MAPPINGS or dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping)
    if container is Literal:
        words = get_args(hint)
        return value in words or (isinstance(value, bool) and _unread(value, words) is not None)
    return type(value) is hint


def _pick(hint: Any, value: Any) -> Any:
    """The member of a union that ``value`` belongs to, else the first that is not null."""
    options = get_args(hint)
    exact = [option for option in options if _fits(option, value)]
    if exact or (value is None and type(None) in options):
        return (exact or [type(None)])[0]
    for option in options:
        try:
            _scalar(bare(option)[0], value)
        except ValueError:
            continue
        return option
    return None


def _unread(value: bool, words: Sequence[Any]) -> str | None:
    """The word that YAML 1.1 read as a truth value: ``compile: off`` comes as False."""
    return next((word for word in (("on", "yes") if value else ("off", "no")) if word in words), None)


def _items(hint: Any, value: Any, name: str, fail: Fail) -> Any:
    args = get_args(hint)
    is_tuple = (get_origin(hint) or hint) is tuple
    if is_tuple and args and Ellipsis not in args:
        if len(value) != len(args):
            fail(name, f"expected {len(args)} entries, got {len(value)}")
        inner: Sequence[Any] = args
    else:
        inner = [args[0] if args else Any] * len(value)
    out = [convert(h, v, join(name, i), fail) for i, (h, v) in enumerate(zip(inner, value, strict=True))]
    return tuple(out) if is_tuple else out


def convert(hint: Any, value: Any, name: str, fail: Fail) -> Any:
    """``value`` as the annotated type ``hint``; ``name`` is its dotted key."""
    if value == MISSING and isinstance(value, str):
        fail(name, "must be set")
    hint, limits = bare(hint)
    if hint is Any or isinstance(hint, str):
        return value
    if _is_union(hint):
        chosen = _pick(hint, value)
        if chosen is None:
            fail(name, f"expected {describe(hint)}, got {value!r}")
        return convert(chosen, value, name, fail)
    container = get_origin(hint) or hint
    if hint is type(None) and value is None:
        return None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return construct(hint, value, name, fail)
    elif container in _LISTS:
        if isinstance(value, (list, tuple)):
            return _items(hint, value, name, fail)
        of = [bare(arg)[0] for arg in get_args(hint)]
        if type(value) in of and (len(of) == 1 or Ellipsis in of):
            fail(name, f"expected a list, got {value!r}; write [{value}]")
    elif container in _MAPPINGS:
        if isinstance(value, Mapping):
            key_hint, value_hint = get_args(hint) or (Any, Any)
            return {
                convert(key_hint, k, join(name, k), fail): convert(value_hint, v, join(name, k), fail)
                for k, v in value.items()
            }
    elif container is Literal:
        if any(value == arg and type(value) is type(arg) for arg in get_args(hint)):
            return value
        if isinstance(value, bool) and (word := _unread(value, get_args(hint))) is not None:
            return word
        if isinstance(value, str):
            fail(name, f"no '{value}' here{suggest(value, map(str, get_args(hint)))}")
    else:
        try:
            scalar = _scalar(hint, value)
        except ValueError:
            pass
        else:
            if type(scalar) in (int, float) and (problem := (limits or ANY).problem(scalar)):
                fail(name, problem)
            return scalar
    fail(name, f"expected {f'{describe(hint)} {limits or str()}'.strip()}, got {value!r}")


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return MISSING if field.default_factory is dataclasses.MISSING else field.default_factory()


def construct(cls: type, node: Mapping[Any, Any], name: str, fail: Fail, base: Any = None) -> Any:
    """An instance of the dataclass ``cls``; keys absent from ``node`` come from ``base`` or the defaults."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in node:
        if key not in fields:
            fail(join(name, key), f"unknown key{suggest(str(key), fields)}")
    values: dict[str, Any] = {}
    for key, field in fields.items():
        place, hint = join(name, key), hints(cls)[key]
        default = getattr(base, key) if base is not None else _default(field)
        ways = field.metadata.get(ELSEWHERE, {})
        if isinstance(word := node.get(key), str) and word in ways:
            fail(place, f"no '{word}' here; {ways[word]}")
        if key not in node:
            if isinstance(default, str) and default == MISSING:
                fail(place, "must be set")
            values[key] = default
        elif dataclasses.is_dataclass(default) and isinstance(node[key], Mapping):
            # Mappings merge: a nested default keeps what the node does not mention.
            values[key] = construct(type(default), node[key], place, fail, base=default)
        else:
            if isinstance(default, Mapping) and default and isinstance(node[key], (str, int, float)):
                example = ", ".join(f"{k}: {v}" for k, v in default.items())
                fail(place, f"expected a mapping, e.g. {{{example}}}, got {node[key]!r}")
            values[key] = convert(hint, node[key], place, fail)
            if isinstance(default, Mapping) and isinstance(values[key], Mapping):
                values[key] = {**default, **values[key]}
    try:
        return cls(**values)
    except ConfigError as error:
        fail("", str(error))
    except ValueError as error:
        fail(name or cls.__name__, str(error))


def plain(value: Any) -> Any:
    """Nested dicts, lists and scalars of a config; what :func:`construct` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value
