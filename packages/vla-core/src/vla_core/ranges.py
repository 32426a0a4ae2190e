"""Ranges of the numbers in a config: stated in the annotation, checked where configs are made.

    n_blocks: Count = 16                                  one of the ranges named here
    bins: Annotated[int, Range(low=2)] = 256              one of its own

:func:`vla_core.config.build_config` checks every number by them (in tuples and mappings as well) and
refuses what is not finite; :func:`check_ranges` is for a config made in Python. ``docs/config.md`` shows
them, and a test fails for a number without one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from vla_core.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``; an ``open`` end is not one of them. Never NaN or infinite."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        """``>= 1``, ``> 0``, ``in [0, 1)``; empty where any finite number is meant."""
        if math.isfinite(self.low) and math.isfinite(self.high):
            left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
            return f"in {left}{self.low}, {self.high}{right}"
        if math.isfinite(self.low):
            return f"{'>' if self.open_low else '>='} {self.low}"
        return f"{'<' if self.open_high else '<='} {self.high}" if math.isfinite(self.high) else ""

    def problem(self, value: float) -> str | None:
        """What is wrong with ``value``, in words; None if nothing is."""
        if value in self:
            return None
        return f"must be {self if math.isfinite(value) else f'a finite number {self}'.strip()}, got {value}"


Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Seed = Annotated[int, Range(low=0, high=2**32 - 1)]
"""What numpy, torch and the simulators all take."""
Layer = Annotated[int, Range()]
"""A layer of a backbone, negative ones counted from its end; the backbone knows how many it has."""
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(low=0, open_low=True)]
NonNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]
BelowOne = Annotated[float, Range(low=0, high=1, open_high=True)]


ELSEWHERE = "elsewhere"
"""In a field's metadata: word that is none of its choice -> what to do instead."""


@lru_cache(maxsize=512)
def hints(cls: type) -> dict[str, Any]:
    """Field -> annotation of a dataclass, ranges included."""
    return get_type_hints(cls, include_extras=True)


def bare(hint: Any) -> tuple[Any, Range | None]:
    """An annotation without its range, and the range."""
    if get_origin(hint) is not Annotated:
        return hint, None
    inner, *extras = get_args(hint)
    return inner, next((extra for extra in extras if isinstance(extra, Range)), None)


def ranges_of(hint: Any) -> Iterator[tuple[type, Range | None]]:
    """Every number in an annotation with its range; unions, tuples and mappings are entered."""
    inner, stated = bare(hint)
    if inner in (int, float):
        yield inner, stated
    elif get_origin(inner) is not None:
        for argument in get_args(inner):
            yield from ranges_of(argument)


def _problems(hint: Any, value: Any, name: str) -> Iterator[str]:
    inner, stated = bare(hint)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        found = next((limit for _, limit in ranges_of(hint) if limit is not None), stated)
        if found is not None and (problem := found.problem(value)):
            yield f"{name}: {problem}"
    elif isinstance(value, (list, tuple)):
        for argument in get_args(inner)[:1]:
            for index, item in enumerate(value):
                yield from _problems(argument, item, f"{name}.{index}")
    elif isinstance(value, Mapping):
        for argument in get_args(inner)[1:]:
            for key, item in value.items():
                yield from _problems(argument, item, f"{name}.{key}")


def check_ranges(config: Any, prefix: str = "") -> None:
    """Refuse a config dataclass with a number out of its range.

    For the ``__post_init__`` of a Config that Python code makes by hand; ``prefix`` is put before the name
    of the field. Nested configs check themselves.

    Raises:
        ConfigError: key, value and range.
    """
    cls: type = type(config)
    annotations = hints(cls)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for problem in _problems(annotations[field.name], value, prefix + field.name):
            raise ConfigError(problem)
