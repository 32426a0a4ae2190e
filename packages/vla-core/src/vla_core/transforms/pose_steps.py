"""Poses relative to a pose: rotations and positions together, as rigid transforms compose."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vla_core import rotations
from vla_core.errors import ConfigError, suggest
from vla_core.specs import GroupSpec, RobotSpec
from vla_core.transforms.action_steps import check_one_unit
from vla_core.transforms.base import Floats, Transform


@dataclass(frozen=True)
class RelativePoseConfig:
    """Which absolute poses to re-express in the frame of the present pose.

    Args:
        poses: action group of a position -> action group of the rotation that goes with it.
        state: action group -> state group that holds the present value; left out: the one of the same name.
    """

    poses: dict[str, str] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    at: slice
    rotation: str = "none"


@dataclass(frozen=True)
class _Pose:
    """Where a pose is in a vector."""

    position: _Part
    rotation: _Part

    def split(self, rows: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions ``[..., 3]`` and matrices ``[..., 3, 3]``."""
        position = rows[..., self.position.at].astype(np.float64)
        return position, rotations.to_matrix(rows[..., self.rotation.at], self.rotation.rotation)

    def write(self, rows: Floats, position: NDArray[np.float64], matrix: NDArray[np.float64]) -> None:
        """Inverse of :meth:`split`."""
        rows[..., self.position.at] = position
        rows[..., self.rotation.at] = rotations.from_matrix(matrix, self.rotation.rotation)


class RelativePose(Transform):
    """Target poses ``T_t`` as ``T_0^-1 T_t`` of the present pose ``T_0``, as GR00T N1.6 has end effectors.

    In the end effector's own frame: a step forward is the same numbers wherever the robot stands and
    whichever way it points. (Subtracting numbers, :class:`~vla_core.transforms.action_steps.RelativeActions`,
    stays in the frame of the base.) Rotations keep the parametrisation of their action group.
    """

    Config = RelativePoseConfig
    config: RelativePoseConfig
    changes_numbers = True

    def __init__(self, config: RelativePoseConfig, spec: RobotSpec) -> None:
        super().__init__(config, spec)
        action, state = spec.action.slices(), spec.observation.state_slices()
        actions = {g.name: g for g in spec.action.groups}
        states = {g.name: g for g in spec.observation.state}
        named = {*config.poses, *config.poses.values()}
        for name in config.state:
            if name not in named:
                raise ConfigError(f"relative_pose: state: '{name}' is in no pose{suggest(name, named)}")

        def parts(
            name: str, groups: dict[str, GroupSpec], where: dict[str, slice], what: str, turns: bool
        ) -> _Part:
            if name not in groups:
                raise ConfigError(f"relative_pose: no {what} group '{name}'{suggest(name, groups)}")
            group = groups[name]
            wanted = rotations.DIMS.get(group.rotation) if turns else 3
            if group.dim != wanted or (group.rotation != "none") != turns:
                raise ConfigError(
                    f"relative_pose: {what} group '{name}' is no {'rotation' if turns else 'position'} "
                    f"(rotation {group.rotation}, {group.dim} dims)"
                )
            if what == "action" and group.representation != "absolute":
                raise ConfigError(
                    f"relative_pose: action group '{name}' is already {group.representation}; only absolute "
                    "targets can be re-expressed"
                )
            return _Part(where[name], group.rotation)

        self._poses: list[tuple[_Pose, _Pose]] = []
        for position, rotation in config.poses.items():
            here = [config.state.get(name, name) for name in (position, rotation)]
            if position in actions and here[0] in states:
                check_one_unit("relative_pose", actions[position], states[here[0]])
            self._poses.append(
                (
                    _Pose(
                        parts(position, actions, action, "action", False),
                        parts(rotation, actions, action, "action", True),
                    ),
                    _Pose(
                        parts(here[0], states, state, "state", False),
                        parts(here[1], states, state, "state", True),
                    ),
                )
            )
        self._named = named

    def output_spec(self, spec: RobotSpec) -> RobotSpec:
        groups = tuple(
            replace(g, representation="relative") if g.name in self._named else g for g in spec.action.groups
        )
        return replace(spec, action=replace(spec.action, groups=groups))

    def actions(self, actions: Floats, state: Floats | None) -> Floats:
        out = actions.copy()
        for action, present in self._poses:
            place, turn = present.split(_needed(state))
            position, matrix = action.split(actions)
            action.write(out, (position - place) @ turn, turn.T @ matrix)
        return out

    def inverse(self, actions: Floats, state: Floats | None) -> Floats:
        out = actions.copy()
        for action, present in self._poses:
            place, turn = present.split(_needed(state))
            position, matrix = action.split(actions)
            action.write(out, place + position @ turn.T, turn @ matrix)
        return out


def _needed(state: Floats | None) -> Floats:
    if state is None:
        raise ValueError("relative_pose needs the robot's state, and the observation has none")
    return state
