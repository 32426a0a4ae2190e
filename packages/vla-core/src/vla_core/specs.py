"""What a robot provides and expects. Specs are compared at every hand-over; a mismatch is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from vla_core.errors import SpecMismatch
from vla_core.stats import NormStats

Representation = Literal["absolute", "delta", "relative"]
Rotation = Literal["none", "euler_xyz", "quaternion_xyzw", "axis_angle", "rotation_6d"]
Gripper = Literal["none", "open_positive", "close_positive"]


@dataclass(frozen=True)
class CameraSpec:
    """One camera: its name and the size in pixels of the raw images it gives."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class GroupSpec:
    """Consecutive dims of a state or action vector that belong together.

    Args:
        name: e.g. ``"end_effector_position"``.
        dim: number of dims.
        unit: unit of every dim, e.g. ``"m"``, ``"rad"``, ``"1"`` for normalised commands.
        representation: what the numbers mean to the robot: a target (absolute), a change since
            the previous command (delta), or an offset from the current state (relative).
        rotation: parametrisation when the group is a rotation.
        gripper: polarity when the group is a gripper command.
    """

    name: str
    dim: int
    unit: str
    representation: Representation = "absolute"
    rotation: Rotation = "none"
    gripper: Gripper = "none"


def check_unique(names: Sequence[str], what: str, where: str) -> None:
    """Raise :class:`SpecMismatch` naming both places of a name that occurs twice."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if name in first:
            raise SpecMismatch(
                f"{what} '{name}' is named twice: {where}[{first[name]}] and {where}[{i}]; "
                "give each its own name"
            )
        first[name] = i


def _slices(groups: tuple[GroupSpec, ...]) -> dict[str, slice]:
    out, start = {}, 0
    for group in groups:
        out[group.name] = slice(start, start + group.dim)
        start += group.dim
    return out


@dataclass(frozen=True)
class ObservationSpec:
    """Cameras in the order the policy sees them, and the state groups (may be empty)."""

    cameras: tuple[CameraSpec, ...]
    state: tuple[GroupSpec, ...] = ()

    def __post_init__(self) -> None:
        check_unique([camera.name for camera in self.cameras], "camera", "observation.cameras")
        check_unique([group.name for group in self.state], "group", "observation.state")

    @property
    def state_dim(self) -> int:
        return sum(group.dim for group in self.state)

    def state_slices(self) -> dict[str, slice]:
        return _slices(self.state)


@dataclass(frozen=True)
class ActionSpec:
    """Action groups, the chunk length in steps and the rate in Hz at which steps are executed."""

    groups: tuple[GroupSpec, ...]
    horizon: int
    control_hz: float

    def __post_init__(self) -> None:
        check_unique([group.name for group in self.groups], "group", "action.groups")

    @property
    def dim(self) -> int:
        return sum(group.dim for group in self.groups)

    def slices(self) -> dict[str, slice]:
        return _slices(self.groups)


@dataclass(frozen=True)
class RobotSpec:
    """One embodiment of a checkpoint: what goes in, what comes out, and the statistics."""

    observation: ObservationSpec
    action: ActionSpec
    statistics: NormStats = field(default_factory=NormStats)
    embodiment: str = "default"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the statistics (they have their own file)."""
        data = asdict(self)
        del data["statistics"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], statistics: NormStats | None = None) -> RobotSpec:
        """Inverse of :meth:`to_dict`."""
        obs, act = data["observation"], data["action"]
        return cls(
            observation=ObservationSpec(
                cameras=tuple(CameraSpec(**c) for c in obs["cameras"]),
                state=tuple(GroupSpec(**g) for g in obs["state"]),
            ),
            action=ActionSpec(
                groups=tuple(GroupSpec(**g) for g in act["groups"]),
                horizon=int(act["horizon"]),
                control_hz=float(act["control_hz"]),
            ),
            statistics=statistics or NormStats(),
            embodiment=data["embodiment"],
        )


def _compare(path: str, expected: Any, got: Any, who: tuple[str, str]) -> None:
    if isinstance(expected, tuple) and isinstance(got, tuple):
        if len(expected) != len(got):
            names = [getattr(x, "name", x) for x in expected], [getattr(x, "name", x) for x in got]
            raise SpecMismatch(
                f"{path}: {who[0]} has {len(expected)} entries {names[0]}, {who[1]} has {len(got)} {names[1]}"
            )
        for i, (a, b) in enumerate(zip(expected, got, strict=True)):
            _compare(f"{path}[{getattr(a, 'name', i)}]", a, b, who)
    elif hasattr(expected, "__dataclass_fields__"):
        for f in fields(expected):
            _compare(f"{path}.{f.name}", getattr(expected, f.name), getattr(got, f.name), who)
    elif expected != got:
        raise SpecMismatch(f"{path}: {who[0]} has {expected!r}, {who[1]} has {got!r}")


def check_observation(expected: ObservationSpec, got: ObservationSpec, who: tuple[str, str]) -> None:
    """Raise :class:`SpecMismatch` naming the first differing field; ``who`` names the two sides."""
    _compare("observation", expected, got, who)


def check_action(
    expected: ActionSpec, got: ActionSpec, who: tuple[str, str], *, horizon: bool = True
) -> None:
    """As :func:`check_observation`; ``horizon=False`` where only one side knows the chunk length."""
    _compare("action.groups", expected.groups, got.groups, who)
    _compare("action.control_hz", expected.control_hz, got.control_hz, who)
    if horizon:
        _compare("action.horizon", expected.horizon, got.horizon, who)
