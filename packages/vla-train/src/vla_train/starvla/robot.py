"""The robot of a run: a small YAML file, because StarVLA's runs do not record theirs.

A run keeps flat statistics of state and action. Which cameras, in which order and size, what the
dims mean and how each was normalised stood in code; the file says it, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import MISSING
from vla_core.config import build_config, load_tree
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.specs import (
    ActionSpec,
    CameraSpec,
    GroupSpec,
    ObservationSpec,
    Representation,
    RobotSpec,
    Rotation,
)

Mode = Literal["q99", "min_max", "mean_std", "scale", "binary", "none"]


@dataclass(frozen=True)
class CameraEntry:
    """One camera: its name and the size in pixels of its raw images."""

    name: str = MISSING
    height: int = MISSING
    width: int = MISSING


@dataclass(frozen=True)
class GroupEntry:
    """Consecutive dims of the state or action vector.

    Args:
        name: of the group; ``dim`` dims.
        normalize: StarVLA's normalisation mode of these dims; ``none`` if it left them as they are.
        unit, representation, rotation, gripper: as in :class:`vla_core.specs.GroupSpec`.
    """

    name: str = MISSING
    dim: int = 1
    normalize: Literal["q99", "min_max", "mean_std", "scale", "binary", "none"] = MISSING
    unit: str = MISSING
    representation: Literal["absolute", "delta", "relative"] = MISSING
    rotation: Literal["none", "euler_xyz", "quaternion_xyzw", "axis_angle", "rotation_6d"] = "none"
    gripper: Literal["none", "open_positive", "close_positive"] = "none"


@dataclass(frozen=True)
class RobotFile:
    """The YAML file behind ``--robot``.

    Args:
        embodiment: its name in the checkpoint.
        control_hz: rate at which actions are executed.
        cameras: in the order in which the run's images were given to the model.
        action, state: groups in the order of the statistics (a state that the run did not read may be
            left out).
    """

    embodiment: str = MISSING
    control_hz: float = MISSING
    cameras: list[CameraEntry] = field(default_factory=list)
    action: list[GroupEntry] = field(default_factory=list)
    state: list[GroupEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in ("cameras", "action"):
            if not getattr(self, key):
                raise ConfigError(f"'{key}' must list at least one entry")
        names = [group.name for group in (*self.action, *self.state)]
        for name in names:
            modes = {g.normalize for g in (*self.action, *self.state) if g.name == name}
            if len(modes) > 1:
                raise ConfigError(f"group '{name}' of action and state must be normalised alike, or renamed")

    def dim(self, vector: str) -> int:
        """Dims of ``action`` or ``state``."""
        return sum(group.dim for group in getattr(self, vector))


def read_robot(path: Path) -> RobotFile:
    """The file at ``path``.

    Raises:
        ConfigError: no such file, or a key that is unknown, missing or of the wrong type.
    """
    tree = load_tree([path])
    return build_config(RobotFile, tree.data, "", tree)


def _groups(entries: list[GroupEntry]) -> tuple[GroupSpec, ...]:
    def one(e: GroupEntry) -> GroupSpec:
        kind: Representation = e.representation
        turn: Rotation = e.rotation
        return GroupSpec(e.name, e.dim, e.unit, kind, turn, e.gripper)

    return tuple(map(one, entries))


def robot_spec(robot: RobotFile, horizon: int, with_state: bool) -> RobotSpec:
    """The spec without its statistics; ``with_state=False`` leaves the state out."""
    return RobotSpec(
        ObservationSpec(
            tuple(CameraSpec(c.name, c.height, c.width) for c in robot.cameras),
            _groups(robot.state) if with_state else (),
        ),
        ActionSpec(_groups(robot.action), horizon, robot.control_hz),
        embodiment=robot.embodiment,
    )


def choose_key(statistics: Mapping[str, Any], key: str | None, where: Path) -> str:
    """The dataset whose statistics to take.

    Raises:
        UserError: there are several and ``key`` names none, or there is none of that name.
    """
    if key is None and len(statistics) == 1:
        return next(iter(statistics))
    if key is None:
        raise UserError(f"{where}: has statistics of {', '.join(statistics)}; choose with --unnorm_key")
    if key not in statistics:
        raise UserError(f"--unnorm_key: {where} has no '{key}'{suggest(key, statistics)}")
    return key


def template(statistics: Mapping[str, Any], key: str, with_state: bool) -> str:
    """A robot file with what the statistics tell filled in, and ``???`` where the user knows more."""
    blank = {"unit": MISSING, "representation": MISSING, "normalize": MISSING}

    def groups(node: Mapping[str, Any]) -> list[dict[str, Any]]:
        dim = len(node["mean"])
        mask = node.get("mask", [True] * dim)
        return [
            {"name": f"dim_{i}", "dim": 1, **blank, **({} if kept else {"normalize": "binary"})}
            for i, kept in enumerate(mask)
        ]

    data: dict[str, Any] = {
        "embodiment": key,
        "control_hz": MISSING,
        "cameras": [{"name": MISSING, "height": MISSING, "width": MISSING}],
        "action": groups(statistics[key]["action"]),
    }
    if with_state and "state" in statistics[key]:
        data["state"] = groups(statistics[key]["state"])
    return (
        "# Replace every ???; join neighbouring dims that belong together, e.g. {name: position, dim: 3}.\n"
        "# cameras: in the order of the run's images.\n"
        "# normalize: q99, min_max, mean_std, scale, binary or none.\n"
        + yaml.safe_dump(data, sort_keys=False)
    )
