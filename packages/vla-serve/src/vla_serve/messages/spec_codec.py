"""Specs of :mod:`vla_core.specs` to and from their messages. Of statistics, only bounds travel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec

from vla_serve.camera_inputs import encode_inputs
from vla_serve.engine.errors import FieldError
from vla_serve.v1 import specs_pb2 as pb

Array = NDArray[np.float64]


def _codes(prefix: str, enum: Any) -> dict[str, int]:
    """``REPRESENTATION_ABSOLUTE`` -> ``absolute``, without the invalid zero."""
    return {name[len(prefix) :].lower(): number for name, number in enum.items() if number}


_ENUMS: dict[str, dict[str, int]] = {
    "representation": _codes("REPRESENTATION_", pb.Representation),
    "rotation": _codes("ROTATION_", pb.Rotation),
    "gripper": _codes("GRIPPER_", pb.Gripper),
}
_NAMES = {kind: {number: name for name, number in codes.items()} for kind, codes in _ENUMS.items()}


def _encode_group(group: GroupSpec, field: str) -> pb.GroupSpec:
    values: dict[str, Any] = {}
    for kind, codes in _ENUMS.items():
        value = getattr(group, kind)
        if value not in codes:
            raise FieldError(f"{field}.{kind}", f"unknown '{value}' (known: {', '.join(codes)})")
        values[kind] = codes[value]
    _check_size(group.dim, f"{field}.dim")
    return pb.GroupSpec(name=group.name, dim=group.dim, unit=group.unit, **values)


def _check_size(value: int, field: str) -> None:
    if not 0 < value < 2**31:
        raise FieldError(field, f"must be positive, got {value}")


def _check_unique(names: Iterable[str], field: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            raise FieldError(
                field, f"has two entries named '{name}'" if name else "has an entry without a name"
            )
        seen.add(name)


def encode_observation_spec(spec: ObservationSpec, field: str = "observation_spec") -> pb.ObservationSpec:
    """Cameras and state groups, in order."""
    message = pb.ObservationSpec()
    for camera in spec.cameras:
        _check_size(camera.height, f"{field}.cameras[{camera.name}].height")
        _check_size(camera.width, f"{field}.cameras[{camera.name}].width")
        message.cameras.add(name=camera.name, height=camera.height, width=camera.width)
    message.state.extend(_encode_group(g, f"{field}.state[{g.name}]") for g in spec.state)
    return message


def encode_action_spec(spec: ActionSpec, field: str = "action_spec") -> pb.ActionSpec:
    """Action groups in order, horizon and rate."""
    _check_size(spec.horizon, f"{field}.horizon")
    groups = [_encode_group(g, f"{field}.groups[{g.name}]") for g in spec.groups]
    return pb.ActionSpec(groups=groups, horizon=spec.horizon, control_hz=spec.control_hz)


def encode_spec(spec: RobotSpec, camera_inputs: Collection[str] = ()) -> pb.RobotSpec:
    """The contract of one embodiment, with the bounds of its raw actions where they are known.

    ``camera_inputs``: what the policy cannot do without, of ``depth``, ``intrinsics`` and ``extrinsics``.
    """
    message = pb.RobotSpec(
        embodiment=spec.embodiment,
        observation=encode_observation_spec(spec.observation, "observation"),
        action=encode_action_spec(spec.action, "action"),
        camera_inputs=encode_inputs(camera_inputs),
    )
    known = spec.statistics.vectors.get("action")
    if known is not None and known.dim == spec.action.dim and _ordered(known.min, known.max):
        message.action_bounds.low.extend(known.min.tolist())
        message.action_bounds.high.extend(known.max.tolist())
    return message


def _ordered(low: Array, high: Array) -> bool:
    return bool(np.isfinite([low, high]).all() and (low <= high).all())


def _decode_groups(messages: Iterable[pb.GroupSpec], field: str) -> tuple[GroupSpec, ...]:
    groups = []
    for message in messages:
        where = f"{field}[{message.name}]"
        values: Mapping[str, Any] = {
            kind: _name(kind, getattr(message, kind), f"{where}.{kind}") for kind in _ENUMS
        }
        _check_size(message.dim, f"{where}.dim")
        groups.append(GroupSpec(message.name, message.dim, message.unit, **values))
    _check_unique((g.name for g in groups), field)
    return tuple(groups)


def _name(kind: str, number: int, field: str) -> str:
    if number not in _NAMES[kind]:
        raise FieldError(field, f"unknown value {number}")
    return _NAMES[kind][number]


def decode_observation_spec(message: pb.ObservationSpec, field: str = "observation_spec") -> ObservationSpec:
    """Inverse of :func:`encode_observation_spec`."""
    cameras = tuple(CameraSpec(c.name, c.height, c.width) for c in message.cameras)
    for camera in cameras:
        _check_size(camera.height, f"{field}.cameras[{camera.name}].height")
        _check_size(camera.width, f"{field}.cameras[{camera.name}].width")
    _check_unique((c.name for c in cameras), f"{field}.cameras")
    return ObservationSpec(cameras, _decode_groups(message.state, f"{field}.state"))


def decode_action_spec(message: pb.ActionSpec, field: str = "action_spec") -> ActionSpec:
    """Inverse of :func:`encode_action_spec`."""
    _check_size(message.horizon, f"{field}.horizon")
    return ActionSpec(_decode_groups(message.groups, f"{field}.groups"), message.horizon, message.control_hz)


def decode_spec(message: pb.RobotSpec) -> RobotSpec:
    """Inverse of :func:`encode_spec`; without statistics and camera inputs."""
    return RobotSpec(
        observation=decode_observation_spec(message.observation, "observation"),
        action=decode_action_spec(message.action, "action"),
        embodiment=message.embodiment,
    )


def decode_bounds(message: pb.RobotSpec) -> tuple[Array, Array] | None:
    """Smallest and largest demonstrated action ``[A]`` of a contract; None where the server knows none.

    Raises:
        FieldError: bounds that do not fit the contract's actions.
    """
    if not message.HasField("action_bounds"):
        return None
    low_A, high_A = (np.array(side) for side in (message.action_bounds.low, message.action_bounds.high))
    dim = sum(group.dim for group in message.action.groups)
    if not low_A.shape == high_A.shape == (dim,) or not _ordered(low_A, high_A):
        raise FieldError("action_bounds", f"must be {dim} finite numbers each, low <= high")
    return low_A, high_A
