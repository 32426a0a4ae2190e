"""A contract laid over a robot's features, by name; nothing is matched by its place.

Shapes: S state dims, A action dims.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import ConfigError, SpecMismatch, UserError, suggest
from vla_core.history import NOW, deltas_of
from vla_core.specs import GroupSpec, RobotSpec
from vla_core.types import Image, Observation
from vla_core.units import apart

from vla_serve.robot.protocol import Robot
from vla_serve.robot.repack import RobotRepackConfig, factor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Wire:
    """A group and the robot's names for its dims.

    Args:
        group: of the contract.
        keys: one a dim; or one name of a vector.
        factor: the contract's number times this is the robot's.
        unit: of the robot's numbers, if the repack file says.
    """

    group: GroupSpec
    keys: tuple[str, ...]
    factor: float
    unit: str | None

    @property
    def said(self) -> str:
        """Unit of the robot's numbers: what the repack file says, else the contract's."""
        return self.group.unit if self.unit is None else self.unit

    @property
    def vector(self) -> bool:
        """Whether the one name has all dims."""
        return len(self.keys) == 1 and self.group.dim > 1


class Wiring:
    """Observations of a robot as the contract wants them, and the contract's numbers as the robot takes them.

    Args:
        spec: the contract.
        robot: whose features are looked at; it need not be connected.
        repack: names and units that differ.

    Raises:
        ConfigError: a repack file that names what is not there.
        SpecMismatch: a camera, state or action group that the robot lacks, a camera of another size, a
            part of the robot that nothing commands, or a number that is observed in one unit and commanded in
            another.
    """

    def __init__(self, spec: RobotSpec, robot: Robot, repack: RobotRepackConfig) -> None:
        if deltas_of(spec.observation) != NOW:
            raise SpecMismatch(
                "robot: the policy looks at earlier moments "
                f"({', '.join(map(str, deltas_of(spec.observation)))} steps), and vla-robot shows the "
                "present alone; keep them in a client of your own (vla_core.history.History)"
            )
        self.spec, self._constant = spec, dict(repack.constant)
        observed, taken = dict(robot.observation_features), dict(robot.action_features)
        _known("cameras", repack.cameras, [c.name for c in spec.observation.cameras])
        _known("state", repack.state, [g.name for g in spec.observation.state])
        for section in ("action", "commands", "limits"):
            _known(section, getattr(repack, section), [g.name for g in spec.action.groups])
        names = [g.name for g in (*spec.observation.state, *spec.action.groups)]
        _known("units", repack.units, names)
        self.cameras = {c.name: repack.cameras.get(c.name, c.name) for c in spec.observation.cameras}
        for camera in spec.observation.cameras:
            _camera(camera.name, self.cameras[camera.name], (camera.height, camera.width, 3), observed)
        units = repack.units
        self.state = _wires("state", spec.observation.state, repack.state, units, observed)
        self.action = _wires("action", spec.action.groups, repack.action, units, taken)
        self._covered(taken)
        self._one_unit(repack.commands)

    def _covered(self, taken: Mapping[str, Any]) -> None:
        commanded = [key for wire in self.action for key in wire.keys] + list(self._constant)
        for key in commanded:
            if key not in taken:
                raise ConfigError(f"repack.constant: the robot takes no '{key}'{suggest(key, taken)}")
            if commanded.count(key) > 1:
                raise ConfigError(f"repack: '{key}' of the robot is commanded twice")
        left = [key for key in taken if key not in commanded]
        if left:
            raise SpecMismatch(
                f"robot: no action group commands {', '.join(left)}; name them in the repack file, under "
                "'action', or under 'constant' with the value to send"
            )

    def _one_unit(self, commands: Mapping[str, str]) -> None:
        """A number that is observed and commanded has one unit, else commands would jump by their ratio."""
        observed = {key: wire for wire in self.state for key in wire.keys}
        for wire in self.action:
            if commands.get(wire.group.name) == "delta" or wire.group.unit.endswith("/s"):
                continue
            for key in wire.keys:
                state = observed.get(key)
                if state is not None and apart(state.said, wire.said):
                    raise SpecMismatch(
                        f"robot: '{key}' would be read in {state.said} (state group '{state.group.name}') "
                        f"and commanded in {wire.said} (action group '{wire.group.name}'); say the robot's "
                        "unit in the repack file, under 'units'"
                    )

    def observe(self, raw: Mapping[str, Any], instruction: str) -> Observation:
        """What the robot observed, in the contract's names, order and units.

        Raises:
            UserError: what the robot promised and did not give: a name, a shape, a finite number.
        """
        images: dict[str, Image] = {}
        for camera in self.spec.observation.cameras:
            key = self.cameras[camera.name]
            image = np.asarray(_get(raw, key))
            if image.dtype != np.uint8 or image.shape != (camera.height, camera.width, 3):
                raise UserError(
                    f"robot: camera '{key}' gave {image.dtype} {list(image.shape)}, expected uint8 RGB "
                    f"[{camera.height}, {camera.width}, 3]"
                )
            images[camera.name] = np.ascontiguousarray(image)
        parts = [_read(raw, wire) / wire.factor for wire in self.state]
        state_S = np.concatenate(parts).astype(np.float32) if parts else None
        return Observation(images, instruction, state_S, embodiment=self.spec.embodiment)

    def command(self, action_A: Array) -> dict[str, Any]:
        """What is sent for an action ``[A]`` in the contract's units."""
        sent: dict[str, Any] = dict(self._constant)
        for wire, part in zip(self.action, self.spec.action.slices().values(), strict=True):
            values = np.asarray(action_A[part], np.float64) * wire.factor
            if wire.vector:
                sent[wire.keys[0]] = values
            else:
                sent |= {key: float(value) for key, value in zip(wire.keys, values, strict=True)}
        return sent

    def really_sent(self, said: Mapping[str, Any] | None, action_A: Array) -> Array:
        """``action_A [A]``, or what the robot says that it did instead, in the contract's units."""
        if not said or not all(key in said for wire in self.action for key in wire.keys):
            return action_A
        return np.concatenate([_read(said, wire) / wire.factor for wire in self.action])

    def lines(self) -> Iterator[str]:
        """What is taken for what, one line each."""
        for name, key in self.cameras.items():
            yield f"  camera  {name} = robot's {key}"
        for kind, wires in (("state ", self.state), ("action", self.action)):
            for wire in wires:
                unit = f"in {wire.unit}" if wire.unit else f"taken to be in {wire.group.unit}"
                yield f"  {kind}  {wire.group.name} = robot's {', '.join(wire.keys)}, {unit}"


def _known(section: str, named: Mapping[str, Any], groups: Sequence[str]) -> None:
    for name in named:
        if name not in groups:
            raise ConfigError(f"repack.{section}: '{name}' is not in the contract{suggest(name, groups)}")


def _camera(name: str, key: str, shape: tuple[int, int, int], observed: Mapping[str, Any]) -> None:
    cameras = [k for k, feature in observed.items() if isinstance(feature, tuple) and len(feature) == 3]
    if key not in observed:
        raise SpecMismatch(
            f"observation.cameras[{name}]: the robot has no camera '{key}' (it has "
            f"{', '.join(cameras) or 'none'}); name it in the repack file, under 'cameras'"
        )
    if observed[key] != shape:
        raise SpecMismatch(
            f"observation.cameras[{name}]: the contract has {list(shape)} (rows, columns, colours), the "
            f"robot's '{key}' {observed[key]}; set that camera's size"
        )


def _wires(
    kind: str,
    groups: Sequence[GroupSpec],
    named: Mapping[str, tuple[str, ...]],
    units: Mapping[str, str],
    features: Mapping[str, Any],
) -> tuple[Wire, ...]:
    wires = []
    for group in groups:
        unit = units.get(group.name)
        keys = _keys(kind, group, named.get(group.name), features)
        wires.append(Wire(group, keys, factor(group.name, group.unit, unit), unit))
    return tuple(wires)


def _keys(
    kind: str, group: GroupSpec, named: tuple[str, ...] | None, features: Mapping[str, Any]
) -> tuple[str, ...]:
    """The robot's names of a group's dims: as the repack file says, or of the group's own name."""
    numbered = tuple(f"{group.name}.{i}" for i in range(group.dim))
    choices = [named] if named is not None else [(group.name,), (f"{group.name}.pos",), numbered]
    for keys in choices:
        sizes = [_size(features.get(key)) for key in keys]
        if (
            None not in sizes
            and (len(keys) == group.dim or len(keys) == 1)
            and sum(filter(None, sizes)) == group.dim
        ):
            return keys
    has = ", ".join(key for key, feature in features.items() if _size(feature) is not None) or "no numbers"
    if named is not None:
        raise ConfigError(
            f"repack.{kind}.{group.name}: {list(named)} are not {group.dim} numbers of the robot, "
            f"which has {has}"
        )
    raise SpecMismatch(
        f"{kind} group '{group.name}' ({group.dim} dims): the robot has no numbers of that name, but {has}; "
        f"say in the repack file which, under '{kind}'"
    )


def _size(feature: Any) -> int | None:
    """How many numbers a feature has; None for a picture and what is not there."""
    if isinstance(feature, tuple):
        return int(feature[0]) if len(feature) == 1 else None
    return 1 if feature in (float, int) else None


def _get(raw: Mapping[str, Any], key: str) -> Any:
    if key not in raw:
        raise UserError(f"robot: its observation lacks '{key}', which its features promise")
    return raw[key]


def _read(raw: Mapping[str, Any], wire: Wire) -> NDArray[np.float64]:
    parts = [np.asarray(_get(raw, key), np.float64).reshape(-1) for key in wire.keys]
    values = np.concatenate(parts)
    if values.size != wire.group.dim or not np.isfinite(values).all():
        raise UserError(
            f"robot: {', '.join(wire.keys)} gave {values.tolist()}, expected {wire.group.dim} finite numbers"
        )
    return values
