"""Every number of every Config states its range, and the range is what the config is checked by."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from omegaconf import MISSING
from vla_core import ranges
from vla_core.config import build_config
from vla_core.errors import ConfigError
from vla_train.config import DatasetsConfig, TrainerConfig

PACKAGES = ("vla_core", "vla_vlm", "vla_geometry", "vla_heads", "vla_data", "vla_train", "vla_serve")
SKIPPED = ("testing", "v1", "__main__")


def modules() -> Iterator[Any]:
    for name in PACKAGES:
        for found in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            if not set(found.name.split(".")) & set(SKIPPED):
                yield importlib.import_module(found.name)


def nested(hint: Any) -> Iterator[type]:
    inner, _ = ranges.bare(hint)
    if dataclasses.is_dataclass(inner) and isinstance(inner, type):
        yield inner
    for argument in get_args(inner) if get_origin(inner) is not None else ():
        yield from nested(argument)


def configs() -> list[type]:
    """What users fill in: each ``Config`` of a part, the settings of the programs, and the configs inside."""
    found: dict[type, None] = {}
    queue = [
        value
        for module in modules()
        for name, value in vars(module).items()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__module__.startswith("vla_")
        and name.endswith(("Config", "RolloutSettings", "RobotFile"))
    ]
    while queue:
        cls = queue.pop()
        if cls not in found:
            found[cls] = None
            queue += [inner for hint in ranges.hints(cls).values() for inner in nested(hint)]
    return sorted(found, key=lambda cls: f"{cls.__module__}.{cls.__qualname__}")


CONFIGS = configs()
NUMBERS = [
    pytest.param(cls, field.name, id=f"{cls.__module__}.{cls.__qualname__}.{field.name}")
    for cls in CONFIGS
    for field in dataclasses.fields(cls)
    if field.init and any(True for _ in ranges.ranges_of(ranges.hints(cls)[field.name]))
]


def test_the_walk_finds_the_configs() -> None:
    names = {cls.__qualname__ for cls in CONFIGS}
    expected = (
        "TrainerConfig EvaluationConfig LoRAConfig RecordConfig RolloutSettings TinyConfig GR00TFlowConfig"
    )
    expected += " PI0Config GatedConfig ResizeConfig MetaWorldConfig RobotFile CameraEntry GroupEntry"
    assert set(expected.split()) <= names
    assert len(NUMBERS) > 180


def bad(limit: ranges.Range, kind: type) -> Iterator[Any]:
    if kind is float:
        yield from (math.nan, math.inf, -math.inf)
    if math.isfinite(limit.low):
        yield kind(limit.low if limit.open_low else limit.low - 1)
    if math.isfinite(limit.high):
        yield kind(limit.high if limit.open_high else limit.high + 1)


def places(hint: Any, value: Any) -> Iterator[Any]:
    """``value`` wherever the annotation has a number: alone, in a tuple, or under a key."""
    inner, _ = ranges.bare(hint)
    options = get_args(inner) if get_origin(inner) is not None else ()
    if inner in (int, float):
        yield value
    elif get_origin(inner) is tuple:
        yield [value] * (len(options) - (Ellipsis in options))
    elif get_origin(inner) is dict:
        yield {"a": value}
    else:
        for option in options:
            yield from places(option, value)


def needed(cls: type) -> dict[str, Any]:
    """Something for the keys without a default, so that the number is what is wrong."""
    annotations = ranges.hints(cls)
    values: dict[Any, Any] = {str: "x", Path: "x", int: 16, float: 1, dict: {"name": "x"}}
    values[DatasetsConfig] = {"train": [{"name": "x"}]}
    found = {}
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if default is dataclasses.MISSING or default == MISSING:
            inner = ranges.bare(annotations[field.name])[0]
            of = get_args(inner)[:1]
            whole = [{"name": "x"}] if of and dataclasses.is_dataclass(of[0]) else ["x"]
            found[field.name] = values.get(get_origin(inner) or inner, whole)
    return found


@pytest.mark.parametrize(("cls", "key"), NUMBERS)
def test_a_number_states_its_range_and_is_checked(cls: type, key: str) -> None:
    hint = ranges.hints(cls)[key]
    for kind, limit in ranges.ranges_of(hint):
        assert limit is not None, f"{cls.__qualname__}.{key}: say Count, Share, ... of vla_core.ranges"
        for value in bad(limit, kind):
            for node in places(hint, value):
                with pytest.raises(ConfigError) as error:
                    build_config(cls, {**needed(cls), key: node}, "here")
                message = str(error.value)
                assert all(part in message for part in (f"here.{key}", str(value), str(limit)))
                assert "\n" not in message


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")
def test_defaults_are_in_their_ranges(cls: type) -> None:
    annotations: dict[str, Any] = ranges.hints(cls)
    for field in dataclasses.fields(cls):
        value = field.default if field.default is not dataclasses.MISSING else None
        limits = [limit for _, limit in ranges.ranges_of(annotations[field.name]) if limit]
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool) and limits:
                assert number in limits[0]


@pytest.mark.parametrize("rates", [{"base": -1e-4}, {"base": 1e-4, "vlm": {"visual": float("nan")}}])
def test_learning_rates_however_deep(rates: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.learning_rate\.(base|vlm\.visual): must be .*>= 0, got"):
        TrainerConfig(learning_rate=rates)


@pytest.mark.parametrize(
    ("changes", "key"), [({"betas": (0.9, 1.0)}, "betas.1"), ({"batch_size": 0}, "batch_size")]
)
def test_a_config_made_in_python_is_checked_too(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^trainer\.{key}: must be"):
        TrainerConfig(**changes)
