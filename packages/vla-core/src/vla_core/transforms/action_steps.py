"""Transforms of the action representation; each has an exact inverse given the raw state."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from vla_core import rotations
from vla_core.errors import ConfigError, suggest
from vla_core.specs import GroupSpec, RobotSpec
from vla_core.transforms.base import Floats, Transform
from vla_core.units import apart


@dataclass(frozen=True)
class RelativeActionsConfig:
    """Which absolute action groups to re-express, each against a state group of the same size.

    Args:
        groups: action group -> state group.
        mode: ``relative``: a_t - s_0; ``delta``: a_t - a_(t-1), the first minus s_0.
    """

    groups: dict[str, str] = field(default_factory=dict)
    mode: Literal["relative", "delta"] = "relative"


def check_one_unit(step: str, action: GroupSpec, state: GroupSpec) -> None:
    """Raise :class:`ConfigError` where a difference of the two would be of two units."""
    if apart(action.unit, state.unit):
        raise ConfigError(
            f"{step}: action group '{action.name}' is in {action.unit} and state group '{state.name}' in "
            f"{state.unit}, so that their difference is of neither; store both in one unit, or correct "
            "what the robot file says"
        )


class RelativeActions(Transform):
    """Absolute targets as offsets from the current state, or as steps from one to the next."""

    Config = RelativeActionsConfig
    config: RelativeActionsConfig
    changes_numbers = True

    def __init__(self, config: RelativeActionsConfig, spec: RobotSpec) -> None:
        super().__init__(config, spec)
        actions, states = spec.action.slices(), spec.observation.state_slices()
        groups = {g.name: g for g in spec.action.groups}
        held = {g.name: g for g in spec.observation.state}
        self._pairs: list[tuple[slice, slice]] = []
        for action, state in config.groups.items():
            if action not in actions:
                raise ConfigError(f"relative_actions: no action group '{action}'{suggest(action, actions)}")
            if state not in states:
                raise ConfigError(f"relative_actions: no state group '{state}'{suggest(state, states)}")
            a, s = actions[action], states[state]
            if a.stop - a.start != s.stop - s.start:
                raise ConfigError(
                    f"relative_actions: action group '{action}' has {a.stop - a.start} dims, "
                    f"state group '{state}' has {s.stop - s.start}"
                )
            check_one_unit("relative_actions", groups[action], held[state])
            if groups[action].representation != "absolute":
                raise ConfigError(
                    f"relative_actions: action group '{action}' is already "
                    f"{groups[action].representation}; only absolute targets can be re-expressed"
                )
            if groups[action].rotation != "none":
                raise ConfigError(
                    f"relative_actions: action group '{action}' is a rotation "
                    f"({groups[action].rotation}), whose difference is not a subtraction"
                )
            self._pairs.append((a, s))

    def output_spec(self, spec: RobotSpec) -> RobotSpec:
        groups = tuple(
            replace(g, representation=self.config.mode) if g.name in self.config.groups else g
            for g in spec.action.groups
        )
        return replace(spec, action=replace(spec.action, groups=groups))

    def _reference(self, state: Floats | None) -> Floats:
        if state is None:
            raise ValueError("relative_actions needs the robot's state, and the observation has none")
        return state

    def actions(self, actions: Floats, state: Floats | None) -> Floats:
        reference, out = self._reference(state), actions.copy()
        for a, s in self._pairs:
            if self.config.mode == "relative":
                out[:, a] -= reference[s]
            else:
                out[:, a] = np.diff(actions[:, a], axis=0, prepend=reference[None, s])
        return out

    def inverse(self, actions: Floats, state: Floats | None) -> Floats:
        reference, out = self._reference(state), actions.copy()
        for a, s in self._pairs:
            steps = actions[:, a] if self.config.mode == "relative" else np.cumsum(actions[:, a], axis=0)
            out[:, a] = steps + reference[s]
        return out


@dataclass(frozen=True)
class ConvertRotationConfig:
    """Rotation groups (of action and state alike, by name) and the parametrisation they get."""

    groups: tuple[str, ...] = ()
    to: Literal["euler_xyz", "quaternion_xyzw", "axis_angle", "rotation_6d"] = "rotation_6d"


def _convert(values: Floats, layout: list[tuple[slice, str | None]], new: str, back: bool) -> Floats:
    """Walk the groups of ``values [..., D]``; those with a kind change parametrisation and size."""
    parts, start = [], 0
    for old_slice, kind in layout:
        width = old_slice.stop - old_slice.start
        if kind is None:
            part: Any = values[..., start : start + width]
        elif back:
            width = rotations.DIMS[new]
            part = rotations.convert(values[..., start : start + width], new, kind)
        else:
            part = rotations.convert(values[..., start : start + width], kind, new)
        parts.append(part)
        start += width
    return np.concatenate(parts, -1).astype(np.float32)


class ConvertRotation(Transform):
    """Re-parametrise rotation groups; the same rotation comes back from the inverse."""

    Config = ConvertRotationConfig
    config: ConvertRotationConfig
    changes_numbers = True

    def __init__(self, config: ConvertRotationConfig, spec: RobotSpec) -> None:
        super().__init__(config, spec)
        groups = [*spec.action.groups, *spec.observation.state]
        known = {g.name for g in groups}
        for name in config.groups:
            if name not in known:
                raise ConfigError(f"convert_rotation: no group '{name}'{suggest(name, known)}")
        for group in groups:
            if group.name in config.groups and group.dim != rotations.DIMS.get(group.rotation):
                raise ConfigError(
                    f"convert_rotation: group '{group.name}' is not a rotation "
                    f"(rotation {group.rotation}, {group.dim} dims)"
                )
        self._action = self._layout(spec.action.groups, spec.action.slices())
        self._state = self._layout(spec.observation.state, spec.observation.state_slices())

    def _layout(
        self, groups: tuple[GroupSpec, ...], slices: dict[str, slice]
    ) -> list[tuple[slice, str | None]]:
        return [(slices[g.name], g.rotation if g.name in self.config.groups else None) for g in groups]

    def output_spec(self, spec: RobotSpec) -> RobotSpec:
        def change(group: GroupSpec) -> GroupSpec:
            if group.name not in self.config.groups:
                return group
            return replace(group, rotation=self.config.to, dim=rotations.DIMS[self.config.to])

        return replace(
            spec,
            observation=replace(spec.observation, state=tuple(map(change, spec.observation.state))),
            action=replace(spec.action, groups=tuple(map(change, spec.action.groups))),
        )

    def state(self, state: Floats) -> Floats:
        return _convert(state, self._state, self.config.to, back=False)

    def actions(self, actions: Floats, state: Floats | None) -> Floats:
        return _convert(actions, self._action, self.config.to, back=False)

    def inverse(self, actions: Floats, state: Floats | None) -> Floats:
        return _convert(actions, self._action, self.config.to, back=True)
