"""A repack file: what a robot calls a contract's cameras and numbers, in which units, and how far they go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_core.errors import ConfigError
from vla_core.ranges import Finite
from vla_core.units import FACTORS, measure_the_same

from vla_serve.repack_file import read_config


@dataclass(frozen=True)
class LimitsConfig:
    """Smallest and largest command of a group, one number a dim, in the contract's unit."""

    low: tuple[Finite, ...] = ()
    high: tuple[Finite, ...] = ()


@dataclass(frozen=True)
class RobotRepackConfig:
    """Where the robot's names, units or habits are not the contract's; unknown keys are errors.

    Args:
        cameras: camera of the contract -> the robot's name for it.
        state: state group -> the robot's names of its numbers, in the order of its dims.
        action: action group -> likewise.
        units: group, of state and action alike -> unit of the robot's numbers (rad, deg, m, cm, mm, 1, %);
            a group that is not named has the contract's.
        commands: action group -> whether the robot takes targets (``absolute``) or changes (``delta``); a
            group that is not named takes targets where the robot also observes all its names, and the
            contract's representation otherwise.
        limits: action group -> bounds of what is sent.
        constant: names of the robot's action that no group commands -> their value, always sent.
    """

    cameras: dict[str, str] = field(default_factory=dict)
    state: dict[str, tuple[str, ...]] = field(default_factory=dict)
    action: dict[str, tuple[str, ...]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    commands: dict[str, Literal["absolute", "delta"]] = field(default_factory=dict)
    limits: dict[str, LimitsConfig] = field(default_factory=dict)
    constant: dict[str, Finite] = field(default_factory=dict)


def read_repack(path: Path | None) -> RobotRepackConfig:
    """The file's content; :class:`ConfigError` names what is wrong in it."""
    return read_config(RobotRepackConfig, path, "keys and values (cameras, state, action, units, ...)")


def factor(group: str, contract: str, robot: str | None) -> float:
    """The contract's number of a unit, times this, is the robot's.

    Raises:
        ConfigError: units that do not measure the same.
    """
    if robot is None or robot == contract:
        return 1.0
    if not measure_the_same(contract, robot):
        raise ConfigError(
            f"repack.units.{group}: '{robot}' cannot be made of the contract's '{contract}' "
            f"(known: {', '.join(FACTORS)})"
        )
    return FACTORS[contract][1] / FACTORS[robot][1]
