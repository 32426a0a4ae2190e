"""Observations that fit a contract and show nothing. Shapes: S state dims."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from vla_core.specs import GroupSpec, ObservationSpec
from vla_core.types import Observation

_NO_TURN = {
    "quaternion_xyzw": (0.0, 0.0, 0.0, 1.0),
    "rotation_6d": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
}
"""Rotations whose parametrisation has no direction at zero."""


def made_up(spec: ObservationSpec, seed: int, instruction: str = "do nothing") -> Observation:
    """Random pixels, and a state near zero with rotations that are rotations."""
    rng = np.random.default_rng(seed)
    images = {
        camera.name: rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
        for camera in spec.cameras
    }
    state = None
    if spec.state:
        state = np.concatenate([_state(group, rng) for group in spec.state]).astype(np.float32)
    return Observation(images, instruction, state)


def variants(spec: ObservationSpec, seed: int) -> dict[str, Observation]:
    """The observation of ``seed`` with one thing changed each: does the answer depend on it?"""
    first, other = made_up(spec, seed), made_up(spec, seed + 1)
    changed = {
        f"camera {camera.name}": replace(
            first, images={**first.images, camera.name: other.images[camera.name]}
        )
        for camera in spec.cameras
    }
    if spec.state:
        changed["state"] = replace(first, state=other.state)
    changed["instruction"] = replace(first, instruction="pick up the red block")
    return changed


def _state(group: GroupSpec, rng: np.random.Generator) -> NDArray[np.float64]:
    none = _NO_TURN.get(group.rotation)
    if none is not None and group.dim % len(none) == 0:
        turned: NDArray[np.float64] = np.tile(none, group.dim // len(none))
        return turned + rng.uniform(-0.01, 0.01, group.dim)
    return rng.uniform(-0.1, 0.1, group.dim)
