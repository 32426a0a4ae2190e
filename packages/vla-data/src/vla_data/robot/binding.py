"""A described robot on a data set: which columns are read, which features are its cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.specs import ActionSpec, CameraSpec, ObservationSpec, RobotSpec

from vla_data.choice import chosen_cameras
from vla_data.formats import features
from vla_data.formats.info import FILE
from vla_data.formats.layout import Episode, Layout
from vla_data.formats.pictures import absence
from vla_data.robot.choose import choose_robot
from vla_data.robot.config import RobotConfig
from vla_data.robot.vectors import Place, Vector, columns, read_vector


@dataclass(frozen=True)
class Binding:
    """Where a robot's parts are in a data set.

    Args:
        robot: its description.
        where: what described it, for errors.
        cameras: name -> feature, in order.
        keys: the column of each group, by vector.
    """

    robot: RobotConfig
    where: str
    cameras: Mapping[str, str]
    keys: Mapping[str, Sequence[str]]

    def read(self, layout: Layout, which: str, table: pa.Table, place: Place) -> Vector:
        """The ``"state"`` or ``"action"`` of a table's rows."""
        groups = self.robot.state if which == "state" else self.robot.action
        return read_vector(layout, which, groups, self.keys[which], table, place)

    def dim_names(self, layout: Layout, which: str, vector: Vector) -> list[str]:
        """What the info calls each dim of ``vector``; "" where it says nothing, or they were converted."""
        groups = self.robot.state if which == "state" else self.robot.action
        found: list[str] = []
        for group, spec, key in zip(groups, vector.groups, self.keys[which], strict=True):
            names = (features.dim_names(layout.features[key]) or [])[group.start : group.end]
            same = len(names) == spec.dim and group.rotation in ("none", spec.rotation)
            found += names if same else [""] * spec.dim
        return found


def bind(
    layout: Layout, episodes: Sequence[Episode], robot: str | None, cameras: Sequence[str] | None
) -> Binding:
    """The robot that ``robot`` (a YAML file) or else the data set describes, with the chosen cameras.

    Raises:
        UserError: a column or camera that is not there.
    """
    described, where = choose_robot(layout, robot)
    known = _cameras(layout, described, where)
    if not known:
        depth = features.depth_pictures(layout.features)
        raise UserError(
            f"{layout.root}: no cameras ({FILE} names no feature of dtype video or image"
            f"{f' but depth maps: {depth[0]}' if depth else ''})"
        )
    chosen = chosen_cameras(known, cameras, layout.root)
    for name, key in chosen.items():
        why = absence(layout, key, episodes)
        if why is not None:
            others = [n for n, k in chosen.items() if absence(layout, k, episodes) is None]
            remedy = f"leave it out: cameras: [{', '.join(others)}]" if others else "get its files"
            raise UserError(
                f"{layout.root}: camera '{name}' is declared in {FILE} ('{key}') and has no pictures: {why}; "
                f"{remedy}"
            )
    keys = {
        "state": columns(layout, "state", described.state, where),
        "action": columns(layout, "action", described.action, where),
    }
    return Binding(described, where, chosen, keys)


def declared_cameras(
    layout: Layout, robot: str | None = None
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Camera -> feature of those with pictures, and camera -> (feature, why not) of those without."""
    described, where = choose_robot(layout, robot)
    present, absent = {}, {}
    for name, key in _cameras(layout, described, where).items():
        why = absence(layout, key, layout.episodes)
        if why is None:
            present[name] = key
        else:
            absent[name] = key, why
    return present, absent


def _cameras(layout: Layout, robot: RobotConfig, where: str) -> dict[str, str]:
    found = layout.cameras()
    if not robot.cameras:
        return found
    for name, key in robot.cameras.items():
        if key in found.values():
            continue
        if key in features.depth_pictures(layout.features):
            raise ConfigError(f"{where}: cameras.{name}: '{key}' holds depth maps, not pictures")
        raise ConfigError(
            f"{where}: cameras.{name}: {layout.root} has no pictures '{key}'{suggest(key, found.values())}"
        )
    return dict(robot.cameras)


def make_spec(
    binding: Binding,
    state: Vector,
    action: Vector,
    sizes: Mapping[str, tuple[int, int]],
    horizon: int,
    control_hz: float,
) -> RobotSpec:
    """The spec without statistics.

    Args:
        binding: what is read.
        state, action: the vectors.
        sizes: (H, W) of each camera.
        horizon: T.
        control_hz: rate of the steps.
    """
    return RobotSpec(
        observation=ObservationSpec(
            tuple(CameraSpec(name, *sizes[name]) for name in binding.cameras), state.groups
        ),
        action=ActionSpec(action.groups, horizon, control_hz),
        embodiment=binding.robot.embodiment,
    )
