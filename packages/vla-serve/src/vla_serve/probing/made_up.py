"""Observations that fit a contract and show nothing. Shapes: S state dims; H, W image size in pixels."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.checks import GEOMETRY
from vla_core.specs import CameraSpec, GroupSpec, ObservationSpec
from vla_core.types import Observation

_NO_TURN = {
    "quaternion_xyzw": (0.0, 0.0, 0.0, 1.0),
    "rotation_6d": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
}
"""Rotations whose parametrisation has no direction at zero."""


def made_up(
    spec: ObservationSpec, seed: int, instruction: str = "do nothing", inputs: Collection[str] = ()
) -> Observation:
    """Random pixels, and a state near zero with rotations that are rotations.

    ``inputs``: what else is known of each camera, of ``depth``, ``intrinsics`` and ``extrinsics``.
    """
    rng = np.random.default_rng(seed)
    images = {
        camera.name: rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
        for camera in spec.cameras
    }
    state = None
    if spec.state:
        state = np.concatenate([_state(group, rng) for group in spec.state]).astype(np.float32)
    geometry: dict[str, Any] = dict(made_up_inputs(spec.cameras, inputs, rng.uniform(0, 0.5)))
    return Observation(images, instruction, state, **geometry)


def made_up_inputs(
    cameras: Iterable[CameraSpec], needed: Collection[str], shift: float = 0.0
) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Of each of ``cameras``: a plane 1 m + ``shift`` away, seen from ``shift`` m beside the origin.

    Depth ``[H, W]`` in metres, intrinsics ``[3, 3]`` in pixels (a field of view of 53 degrees, narrower with
    ``shift``), extrinsics ``[4, 4]`` camera to world.
    """
    made: dict[str, dict[str, NDArray[np.float32]]] = {name: {} for name in GEOMETRY if name in needed}
    for camera in cameras:
        height, width = camera.height, camera.width
        focal, pose = width * (1 + shift), np.eye(4, dtype=np.float32)
        pose[0, 3] = shift
        known = {
            "depth": np.full((height, width), 1 + shift, np.float32),
            "intrinsics": np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32),
            "extrinsics": pose,
        }
        for name, values in made.items():
            values[camera.name] = known[name]
    return made


def variants(spec: ObservationSpec, seed: int, inputs: Collection[str] = ()) -> dict[str, Observation]:
    """The observation of ``seed`` with one thing changed each: does the answer depend on it?"""
    first, other = (made_up(spec, s, inputs=inputs) for s in (seed, seed + 1))
    changed = {
        f"camera {camera.name}": replace(
            first, images={**first.images, camera.name: other.images[camera.name]}
        )
        for camera in spec.cameras
    }
    if spec.state:
        changed["state"] = replace(first, state=other.state)
    for name in GEOMETRY:
        if name in inputs:
            changed[name] = replace(first, **{name: getattr(other, name)})
    changed["instruction"] = replace(first, instruction="pick up the red block")
    return changed


def _state(group: GroupSpec, rng: np.random.Generator) -> NDArray[np.float64]:
    none = _NO_TURN.get(group.rotation)
    if none is not None and group.dim % len(none) == 0:
        turned: NDArray[np.float64] = np.tile(none, group.dim // len(none))
        return turned + rng.uniform(-0.01, 0.01, group.dim)
    return rng.uniform(-0.1, 0.1, group.dim)
