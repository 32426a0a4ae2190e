"""Moves the fixed cameras of a MuJoCo model on a sphere around a point, for tests under other views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_core.rotations import from_matrix, to_matrix

QUATERNION = "quaternion_xyzw"  # MuJoCo's own order is wxyz


class CameraOrbit:
    """Turns cameras about a point; a camera that looked at it still does, from the same distance.

    Args:
        model: the MuJoCo model; its cameras' poses are changed in place.
        cameras: names; each must be fixed to the world.
        pivot: the point ``[3]`` in metres.
    """

    def __init__(self, model: Any, cameras: Sequence[str], pivot: Sequence[float]) -> None:
        self._model, self._pivot = model, np.asarray(pivot, np.float64)
        self._ids = [model.camera(name).id for name in cameras]
        self._positions = model.cam_pos[self._ids].copy()
        self._rotations = to_matrix(np.roll(model.cam_quat[self._ids], -1, axis=-1), QUATERNION)

    def move(self, rng: np.random.Generator, low: float, high: float) -> None:
        """From its original pose, turn each camera by ``low`` to ``high`` degrees in a random direction.

        The axis is perpendicular to the line from the pivot to the camera, so the whole angle moves it.
        """
        for index, position, rotation in zip(self._ids, self._positions, self._rotations, strict=True):
            arm = position - self._pivot
            across = np.cross(arm, rng.standard_normal(3))
            angle = np.deg2rad(rng.uniform(low, high))
            turn = to_matrix(angle * across / np.linalg.norm(across), "axis_angle")
            self._model.cam_pos[index] = self._pivot + turn @ arm
            self._model.cam_quat[index] = np.roll(from_matrix(turn @ rotation, QUATERNION), 1)
