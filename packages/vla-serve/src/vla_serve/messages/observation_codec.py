"""Observations to and from their message, checked against the contract on both sides.

The same checks run in the client (before anything is sent) and in the server (which trusts nobody).
Shapes: H, W image size in pixels; S state dims.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.checks import GEOMETRY, WHOLE_DEPTH, geometry_shape
from vla_core.errors import suggest
from vla_core.specs import ObservationSpec, RobotSpec
from vla_core.stats import VectorStats
from vla_core.types import Observation

from vla_serve.camera_inputs import check_inputs
from vla_serve.engine.errors import FieldError
from vla_serve.messages.codec import (
    Encoding,
    as_array,
    decode_image,
    decode_tensor,
    encode_image,
    encode_tensor,
)
from vla_serve.v1 import types_pb2 as pb

MAX_INSTRUCTION = 4096
"""Most characters of an instruction."""

LARGEST = 1e6
"""A number beyond it, of which no statistics are known, may be why a policy has no answer."""

FAR = 1e4
"""The same of a state, in halves of its range in the data: squared, half precision no longer holds it."""


def check_range(observation: Observation, spec: RobotSpec, field: str = "observation") -> None:
    """Raise :class:`FieldError` for the first number that a policy cannot be expected to compute with.

    Where a policy's numbers end depends on its weights: whoever asks has seen it fail. What it has learned
    from (ticks of an encoder, by the million) is not why, however large.
    """
    arrays = []
    if observation.state is not None:
        known = spec.statistics.vectors.get("state")
        arrays.append((f"{field}.state", observation.state, _far(observation.state, known)))
    for kind in GEOMETRY:
        for camera, array in (getattr(observation, kind) or {}).items():
            arrays.append((f"{field}.{kind}[{camera}]", array, np.abs(array) > LARGEST))
    for name, array, beyond in arrays:
        if not beyond.any():
            continue
        where = tuple(int(i) for i in np.argwhere(beyond)[0])
        raise FieldError(
            name,
            f"{float(array[where]):.3g} at {list(where)} is out of range: the policy's own numbers overflow",
        )


def _far(state_S: NDArray[np.float32], known: VectorStats | None) -> NDArray[np.bool_]:
    if known is None or known.dim != len(state_S):
        return np.abs(state_S) > LARGEST
    half = (known.max - known.min) / 2
    half = np.where(half < 1e-6, LARGEST / FAR, half)  # a constant dim is not scaled
    return np.abs(state_S - (known.min + known.max) / 2) > FAR * half


def _check_float(array: NDArray[Any], shape: tuple[int, ...], field: str) -> None:
    if array.dtype != np.float32:
        raise FieldError(field, f"expected float32, got {array.dtype}")
    if array.shape != shape:
        raise FieldError(field, f"expected shape {list(shape)}, got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise FieldError(field, "holds NaN or infinity")


def _check_cameras(spec: ObservationSpec, given: Mapping[str, Any], field: str, complete: bool) -> None:
    names = [camera.name for camera in spec.cameras]
    for name in given:
        if name not in names:
            raise FieldError(f"{field}[{name[:64]}]", f"no such camera{suggest(name[:64], names)}")
    for name in names:
        if complete and name not in given:
            raise FieldError(f"{field}[{name}]", f"missing; got {sorted(given)}")


def _check_instruction(instruction: str, field: str) -> None:
    if not instruction.strip():
        raise FieldError(field, "empty; set Observation.instruction or reset(instruction=...)")
    if len(instruction) > MAX_INSTRUCTION:
        raise FieldError(field, f"{len(instruction)} characters, at most {MAX_INSTRUCTION}")


def _check_state(spec: ObservationSpec, state: NDArray[Any] | None, field: str) -> None:
    if spec.state_dim == 0:
        if state is not None:
            raise FieldError(field, "this policy takes no state; send None")
    elif state is None:
        groups = ", ".join(f"{g.name} ({g.dim})" for g in spec.state)
        raise FieldError(field, f"missing; the policy reads {spec.state_dim} dims: {groups}")
    else:
        _check_float(state, (spec.state_dim,), field)


def _as_float32(value: Any, field: str) -> NDArray[np.float32]:
    array = as_array(value, field)
    if array.dtype.kind not in "fiu":
        raise FieldError(field, f"expected numbers, got {array.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
        return array.astype(np.float32, copy=False)


def encode_observation(
    observation: Observation,
    spec: ObservationSpec,
    encoding: Encoding = "raw",
    instruction: str = "",
    into: pb.Observation | None = None,
    raw_images: dict[str, NDArray[np.uint8]] | None = None,
    field: str = "observation",
    camera_inputs: Collection[str] = (),
) -> pb.Observation:
    """The message of an observation that fits ``spec``.

    Numbers other than images may come in any numeric dtype and are sent as float32.

    Args:
        observation: raw, in real units.
        spec: of the contract.
        encoding: of the images.
        instruction: for an observation whose own is empty.
        into: an empty message to fill and return instead of a new one.
        raw_images: where images go instead, when ``encoding`` is raw; see :mod:`vla_serve.messages.wire`.
        field: how errors name the observation.
        camera_inputs: what the policy cannot do without; see :mod:`vla_serve.camera_inputs`.

    Raises:
        FieldError: what does not fit, by name.
    """
    message = pb.Observation() if into is None else into
    message.instruction = observation.instruction or instruction
    _check_instruction(message.instruction, f"{field}.instruction")
    _check_cameras(spec, observation.images, f"{field}.images", complete=True)
    for camera in spec.cameras:
        where = f"{field}.images[{camera.name}]"
        image = as_array(observation.images[camera.name], where)
        if image.dtype != np.uint8 or image.shape != (camera.height, camera.width, 3):
            expected = f"uint8 [{camera.height}, {camera.width}, 3]"
            raise FieldError(where, f"expected {expected}, got {image.dtype} {list(image.shape)}")
        if raw_images is not None and encoding == "raw":
            raw_images[camera.name] = image
        else:
            encode_image(image, encoding, where, into=message.images[camera.name])
    state = observation.state
    state = None if state is None else _as_float32(state, f"{field}.state")
    _check_state(spec, state, f"{field}.state")
    if state is not None:
        message.state.CopyFrom(encode_tensor(state))
    cameras = {camera.name: camera for camera in spec.cameras}
    for kind in GEOMETRY:
        given = getattr(observation, kind)
        if given is None:
            continue
        _check_cameras(spec, given, f"{field}.{kind}", complete=False)
        for name, value in given.items():
            where = f"{field}.{kind}[{name}]"
            if kind == "depth" and as_array(value, where).dtype.kind in "iu":
                raise FieldError(where, f"{as_array(value, where).dtype}{WHOLE_DEPTH}")
            array = _as_float32(value, where)
            _check_float(array, geometry_shape(kind, cameras[name]), where)
            getattr(message, kind)[name].CopyFrom(encode_tensor(array))
    check_inputs(camera_inputs, spec, observation, field)
    return message


def decode_observation(
    message: pb.Observation,
    spec: ObservationSpec,
    embodiment: str,
    instruction: str = "",
    field: str = "observation",
    camera_inputs: Collection[str] = (),
) -> Observation:
    """The observation of a message; arrays are read-only. See :func:`encode_observation`."""
    text = message.instruction or instruction
    _check_instruction(text, f"{field}.instruction")
    _check_cameras(spec, message.images, f"{field}.images", complete=True)
    images = {
        camera.name: decode_image(
            message.images[camera.name], camera.height, camera.width, f"{field}.images[{camera.name}]"
        )
        for camera in spec.cameras
    }
    state = decode_tensor(message.state, f"{field}.state") if message.HasField("state") else None
    _check_state(spec, state, f"{field}.state")
    geometry = {kind: _decode_geometry(message, kind, spec, field) for kind in GEOMETRY}
    observation = Observation(images, text, state, embodiment=embodiment, **geometry)
    check_inputs(camera_inputs, spec, observation, field)
    return observation


def _decode_geometry(
    message: pb.Observation, kind: str, spec: ObservationSpec, field: str
) -> dict[str, NDArray[np.float32]] | None:
    given = getattr(message, kind)
    _check_cameras(spec, given, f"{field}.{kind}", complete=False)
    arrays = {}
    for camera in spec.cameras:
        if camera.name in given:
            where = f"{field}.{kind}[{camera.name}]"
            arrays[camera.name] = decode_tensor(given[camera.name], where)
            _check_float(arrays[camera.name], geometry_shape(kind, camera), where)
    return arrays or None
