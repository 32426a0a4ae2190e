"""An observation against its spec: checked here alone, for policy, collator, client and server.

Numpy alone. Every check raises :class:`Mismatch`, which names the field; what a caller calls the field in its
own world (a message, a data set) it can prepend.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_core.errors import UserError, suggest
from vla_core.specs import CameraSpec, ObservationSpec, RobotSpec
from vla_core.types import Observation

WHOLE_DEPTH = " is no distance in metres (millimetres? divide by 1000); send float32"
GEOMETRY = ("depth", "intrinsics", "extrinsics")
"""Fields of an observation that hold something for each camera."""


class Mismatch(UserError):
    """A field that is not what the spec says.

    Args:
        field: its path, e.g. ``images[front]`` or ``state``.
        subject: how a sentence calls it, e.g. ``camera 'front'``.
        reason: the rest of the sentence.
    """

    def __init__(self, field: str, subject: str, reason: str) -> None:
        super().__init__(f"{subject}{'' if reason.startswith(':') else ' '}{reason}")
        self.field, self.subject, self.reason = field, subject, reason

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.field, self.subject, self.reason)


def check_fits(observation: Observation, spec: RobotSpec) -> None:
    """All of ``observation``: every camera is there, and every field is what the spec says."""
    check_instruction(observation.instruction)
    for camera in spec.observation.cameras:
        check_present(camera.name, observation.images)
    check_views(observation, spec)
    for kind in ("intrinsics", "extrinsics"):
        # Depth may hold NaN or infinity where a sensor saw nothing; a pose may not.
        for name, value in (getattr(observation, kind) or {}).items():
            check_finite(value, f"{kind}[{name}]", f"{kind} of camera '{name}'")
    check_state(observation.state, spec.observation)


def check_views(observation: Observation, spec: RobotSpec) -> None:
    """As :func:`check_fits`, of the images, depth and calibration that are there: a view may be missing."""
    cameras = {camera.name: camera for camera in spec.observation.cameras}
    for name, image in observation.images.items():
        check_known(name, cameras)
        check_image(image, cameras[name])
        for kind in GEOMETRY:
            value = (getattr(observation, kind) or {}).get(name)
            if value is not None:
                check_geometry(value, kind, cameras[name])


def check_instruction(instruction: object) -> None:
    """A text that says something: no policy was trained without one."""
    if not isinstance(instruction, str):
        raise Mismatch("instruction", "instruction", f": expected a text, got a {type(instruction).__name__}")
    if not instruction.strip():
        raise Mismatch("instruction", "instruction", "is empty; say what to do")


def check_known(name: str, cameras: Collection[str], kind: str = "images") -> None:
    """``name`` is a camera of the spec."""
    if name not in cameras:
        raise Mismatch(
            f"{kind}[{name[:64]}]", f"camera '{name[:64]}'", f"is not in the spec{suggest(name, cameras)}"
        )


def check_present(name: str, given: Collection[str], kind: str = "images") -> None:
    """Something was given for the camera ``name``."""
    if name not in given:
        raise Mismatch(f"{kind}[{name}]", f"camera '{name}'", f"is missing; got {sorted(given)}")


def check_image(image: NDArray[Any], camera: CameraSpec) -> None:
    """uint8 ``[H, W, 3]`` of the camera's size."""
    shape = (camera.height, camera.width, 3)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != shape:
        given = isinstance(image, np.ndarray)
        got = f"{image.dtype} {image.shape}" if given else f"a {type(image).__name__}"
        raise Mismatch(
            f"images[{camera.name}]",
            f"camera '{camera.name}'",
            f": expected uint8 {shape}, got {got}",
        )


def geometry_shape(kind: str, camera: CameraSpec) -> tuple[int, ...]:
    """Shape of what ``kind`` (of :data:`GEOMETRY`) holds for a camera."""
    return {"depth": (camera.height, camera.width), "intrinsics": (3, 3), "extrinsics": (4, 4)}[kind]


def check_geometry(value: NDArray[Any], kind: str, camera: CameraSpec) -> None:
    """The shape of a camera's depth, intrinsics or extrinsics."""
    field, subject = f"{kind}[{camera.name}]", f"{kind} of camera '{camera.name}'"
    check_shape(value, geometry_shape(kind, camera), field, subject)
    if kind == "depth" and value.dtype.kind != "f":
        raise Mismatch(field, subject, f": {value.dtype}{WHOLE_DEPTH}")


def check_state(state: NDArray[Any] | None, spec: ObservationSpec) -> None:
    """There if the spec has one, with its dims, and finite."""
    dim = spec.state_dim
    if dim == 0:
        if state is not None:
            raise Mismatch("state", "state", "was given, and this policy takes none")
        return
    if state is None:
        groups = ", ".join(f"{group.name} ({group.dim})" for group in spec.state)
        raise Mismatch("state", "state", f"is missing; this policy needs {dim} dims: {groups}")
    check_numbers(state, "state", "state")
    if state.shape != (dim,):
        raise Mismatch("state", "state", f": expected shape ({dim},), got {state.shape}")
    check_finite(state, "state", "state")


def check_numbers(value: object, field: str, subject: str) -> None:
    """A numpy array of real numbers: what is complex, true or a text would be cast."""
    if not isinstance(value, np.ndarray):
        raise Mismatch(field, subject, f": expected a numpy array, got a {type(value).__name__}")
    if value.dtype.kind not in "fiu":
        raise Mismatch(field, subject, f": expected numbers, got {value.dtype}")


def check_shape(value: NDArray[Any], shape: tuple[int, ...], field: str, subject: str) -> None:
    """Exactly ``shape``."""
    check_numbers(value, field, subject)
    if np.shape(value) != shape:
        raise Mismatch(field, subject, f": expected {shape}, got {np.shape(value)}")


def check_finite(value: NDArray[Any], field: str, subject: str) -> None:
    """Neither NaN nor infinity."""
    if not np.isfinite(value).all():
        raise Mismatch(field, subject, "holds NaN or infinity")
