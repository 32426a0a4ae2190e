"""Rotations as data sets store them, to the parametrisations that the project computes with.

Shapes: ``[F, d]`` in and out. ``vla_core.rotations`` has the conventions of the targets.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from vla_core import rotations
from vla_core.specs import Rotation

Array = NDArray[np.float64]

_EULER = ("xyz", "xzy", "yxz", "yzx", "zxy", "zyx")
DIMS = {
    **{f"euler_{order}": 3 for order in _EULER}, "euler_fixed_xyz": 3, "quaternion_xyzw": 4,
    "quaternion_wxyz": 4, "axis_angle": 3, "rotation_6d": 6, "rotation_6d_rows": 6, "matrix": 9,
}  # fmt: skip
"""Stored kind -> number of dims."""

_NEAREST: dict[str, Rotation] = {"quaternion_wxyz": "quaternion_xyzw", "matrix": "rotation_6d"}


def target(stored: str, wanted: Rotation | None) -> Rotation:
    """What a stored kind becomes: ``wanted``, itself, or the nearest kind that the project computes with."""
    if wanted is not None:
        return wanted
    if stored in _NEAREST:
        return _NEAREST[stored]
    if stored.startswith("euler"):
        return "euler_xyz"
    return "rotation_6d" if stored == "rotation_6d_rows" else cast("Rotation", stored)


def _about(axis: str, angle: Array) -> Array:
    """Matrices ``[F, 3, 3]`` of turns by ``angle [F]`` about a coordinate axis."""
    return rotations.to_matrix(angle[:, None] * np.eye(3)["xyz".index(axis)], "axis_angle")


def matrices(values: NDArray[Any], stored: str) -> Array:
    """Rotation matrices ``[F, 3, 3]``; ValueError where a vector has no direction."""
    v = np.asarray(values, np.float64)
    if stored == "matrix":
        return v.reshape(-1, 3, 3)
    if stored == "quaternion_wxyz":
        return rotations.to_matrix(v[:, [1, 2, 3, 0]], "quaternion_xyzw")
    if stored == "rotation_6d_rows":
        return np.swapaxes(rotations.to_matrix(v, "rotation_6d"), -1, -2)
    if stored.startswith("euler_") and stored != "euler_xyz":
        order = stored[-3:]
        turns = [_about(axis, v[:, i]) for i, axis in enumerate(order)]
        # Turns about fixed axes apply from the left, one after another.
        return turns[2] @ turns[1] @ turns[0] if "fixed" in stored else turns[0] @ turns[1] @ turns[2]
    return rotations.to_matrix(v, stored)


def convert(values: NDArray[np.float32], stored: str, wanted: Rotation) -> NDArray[np.float32]:
    """``values [F, d]`` as ``wanted``: float32, bit-equal where nothing is to convert."""
    if stored == wanted:
        return values
    return rotations.from_matrix(matrices(values, stored), wanted).astype(np.float32)
