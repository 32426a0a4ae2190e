"""The YAML file that describes a robot of a data set: cameras, state and action groups, rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_core.config import build_config, load_tree
from vla_core.errors import ConfigError
from vla_core.ranges import Count, Finite, Natural, Positive

StoredRotation = Literal[
    "none", "euler_xyz", "euler_xzy", "euler_yxz", "euler_yzx", "euler_zxy", "euler_zyx",
    "euler_fixed_xyz", "quaternion_xyzw", "quaternion_wxyz", "axis_angle", "rotation_6d",
    "rotation_6d_rows", "matrix",
]  # fmt: skip
DEGREES = ("deg", "degree", "degrees", "°")
GivenRotation = Literal["euler_xyz", "quaternion_xyzw", "axis_angle", "rotation_6d"]


@dataclass(frozen=True)
class GroupConfig:
    """Consecutive dims of a column that belong together.

    Args:
        name: how the policy calls the group.
        key: the column; none: the data set's whole state or action vector.
        start, end: the dims ``[start, end)`` of the column; no end: all from ``start``.
        unit: of every dim, e.g. ``m``, ``rad``; ``1`` for normalised commands.
        representation: what the numbers mean: a target (``absolute``), a change since the command before
            (``delta``), or an offset from the current state (``relative``).
        rotation: how a rotation is stored. ``euler_xyz`` (and the other orders) are intrinsic angles in the
            order of the letters, ``euler_fixed_xyz`` is roll, pitch, yaw about fixed axes,
            ``rotation_6d`` is the first two columns of the matrix, ``rotation_6d_rows`` its first two
            rows, ``matrix`` is all nine by rows.
        to: the parametrisation that the policy gets; none: the stored one, or the nearest that the project
            computes with.
        gripper: what a large number means.
        threshold: a gripper recorded as a number becomes 1 above it and 0 elsewhere.
        range: what its makers say are the smallest and largest number; ``vla-data inspect`` names
            what lies outside.
    """

    name: str
    key: str | None = None
    start: Natural = 0
    end: Count | None = None
    unit: str = "unknown"
    representation: Literal["absolute", "delta", "relative"] = "absolute"
    rotation: StoredRotation = "none"
    to: GivenRotation | None = None
    gripper: Literal["none", "open_positive", "close_positive"] = "none"
    threshold: Finite | None = None
    range: tuple[Finite, Finite] | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise ConfigError(
                f"group '{self.name}': dims [{self.start}, {self.end}) are none; 0 <= start < end"
            )
        if self.to is not None and self.rotation == "none":
            raise ConfigError(f"group '{self.name}': 'to' needs 'rotation', which says how it is stored")
        if self.unit in DEGREES and (self.rotation.startswith("euler") or self.rotation == "axis_angle"):
            raise ConfigError(
                f"group '{self.name}': a rotation in '{self.unit}' would be computed with as radians; store "
                "radians, or leave 'rotation' out to keep these numbers as they are"
            )
        if self.threshold is not None and self.gripper == "none":
            raise ConfigError(f"group '{self.name}': 'threshold' needs 'gripper', which says what 1 means")


@dataclass(frozen=True)
class RobotConfig:
    """A robot as a data set records it.

    Args:
        embodiment: its name in the policy.
        control_hz: rate at which actions are executed; none: the data set's fps.
        cameras: the policy's name of a camera -> the data set's feature, in the order the policy sees them;
            none: all of the data set, by their own names.
        state, action: groups in the order of the vector.
        instruction_key: columns that hold the instruction, as text or as an index into the tasks; the
            first with a text counts. ``sub_task``: the texts of parts of an episode, as GR00T N1.6 lists
            them. None: ``task_index``.
    """

    embodiment: str
    action: tuple[GroupConfig, ...]
    state: tuple[GroupConfig, ...] = ()
    control_hz: Positive | None = None
    cameras: dict[str, str] = field(default_factory=dict)
    instruction_key: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.action:
            raise ConfigError("action: name at least one group")
        for which, groups in (("state", self.state), ("action", self.action)):
            names = [g.name for g in groups]
            for name in names:
                if names.count(name) > 1:
                    raise ConfigError(f"{which}: two groups are named '{name}'; give each its own name")
        keys = list(self.cameras.values())
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"cameras: two cameras show '{key}'; a policy would see it twice")


def load_robot(path: str | Path) -> RobotConfig:
    """The robot of a YAML file.

    Raises:
        ConfigError: no such file, or a key or value that is none; with file and line.
    """
    tree = load_tree([Path(path).expanduser()])
    return build_config(RobotConfig, tree.data, tree=tree)
