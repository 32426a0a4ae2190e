"""The robot of a foreign checkpoint: a small YAML file for what such checkpoints do not record.

Which cameras a policy saw, what its dims mean and how fast it acts stood in code or in a data set; the
file says it, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from omegaconf import MISSING
from vla_core.config import Tree, build_config, load_tree
from vla_core.errors import ConfigError
from vla_core.ranges import Count, Positive
from vla_core.specs import (
    ActionSpec,
    CameraSpec,
    GroupSpec,
    ObservationSpec,
    Representation,
    RobotSpec,
    Rotation,
)


@dataclass(frozen=True)
class CameraEntry:
    """One camera: its name and the size in pixels of its raw images."""

    name: str = MISSING
    height: Count = MISSING
    width: Count = MISSING


@dataclass(frozen=True)
class GroupEntry:
    """Consecutive dims of the state or action vector.

    Args:
        name: of the group; ``dim`` dims.
        unit, representation, rotation, gripper: as in :class:`vla_core.specs.GroupSpec`.
    """

    name: str = MISSING
    dim: Count = 1
    unit: str = MISSING
    representation: Literal["absolute", "delta", "relative"] = MISSING
    rotation: Literal["none", "euler_xyz", "quaternion_xyzw", "axis_angle", "rotation_6d"] = "none"
    gripper: Literal["none", "open_positive", "close_positive"] = "none"


@dataclass(frozen=True)
class RobotEntry:
    """What the YAML files behind ``--robot`` share; each adds ``action`` and ``state``, lists of its groups.

    Args:
        embodiment: its name in the checkpoint.
        control_hz: rate at which actions are executed.
        cameras: the cameras, with the sizes of their raw images.
    """

    embodiment: str = MISSING
    control_hz: Positive = MISSING
    cameras: list[CameraEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.groups("action"):
            raise ConfigError("'action' must list at least one entry")

    def groups(self, vector: str) -> Sequence[GroupEntry]:
        """Those of ``action`` or ``state``, in the order of the statistics."""
        groups: Sequence[GroupEntry] = getattr(self, vector)
        return groups

    def dim(self, vector: str) -> int:
        """Dims of ``action`` or ``state``."""
        return sum(group.dim for group in self.groups(vector))


Robot = TypeVar("Robot", bound=RobotEntry)


def read_robot_file(cls: type[Robot], path: Path) -> Robot:
    """The file at ``path``.

    Raises:
        ConfigError: no such file, a key that is unknown, missing or of the wrong type, or two cameras or
            groups of one name.
    """
    tree = load_tree([path])
    robot = build_config(cls, tree.data, "", tree)
    _check_names("cameras", [camera.name for camera in robot.cameras], tree)
    for vector in ("action", "state"):
        _check_names(vector, [group.name for group in robot.groups(vector)], tree)
    return robot


def _check_names(key: str, names: Sequence[str], tree: Tree) -> None:
    """Two cameras of one name would both show the picture of one of them."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if first.setdefault(name, i) != i:
            place = f"{key}.{first[name]}.name"
            raise ConfigError(
                f"{tree.where(f'{key}.{i}.name')}{key}.{i}.name '{name}' is that of {place} already "
                f"({tree.where(place).removesuffix(': ')}); names must differ"
            )


def _groups(entries: Sequence[GroupEntry]) -> tuple[GroupSpec, ...]:
    def one(e: GroupEntry) -> GroupSpec:
        kind: Representation = e.representation
        turn: Rotation = e.rotation
        return GroupSpec(e.name, e.dim, e.unit, kind, turn, e.gripper)

    return tuple(map(one, entries))


def robot_spec(
    robot: RobotEntry, horizon: int, with_state: bool, cameras: Sequence[CameraSpec] | None = None
) -> RobotSpec:
    """The spec without its statistics; ``with_state=False`` leaves the state out.

    Args:
        robot: the file.
        horizon: T.
        with_state: see above.
        cameras: those of the policy; None: the file's.
    """
    if cameras is None:
        cameras = [CameraSpec(c.name, c.height, c.width) for c in robot.cameras]
    return RobotSpec(
        ObservationSpec(tuple(cameras), _groups(robot.groups("state")) if with_state else ()),
        ActionSpec(_groups(robot.groups("action")), horizon, robot.control_hz),
        embodiment=robot.embodiment,
    )


def template_text(comments: Sequence[str], data: dict[str, Any]) -> str:
    """A robot file to fill in: what is known in ``data``, ``???`` where the user knows more."""
    known = "# Replace every ???; join neighbouring dims that belong together, e.g. {name: position, dim: 3}."
    return "\n".join([known, *(f"# {line}" for line in comments), yaml.safe_dump(data, sort_keys=False)])
