"""Rotation parametrisations, batched numpy float64 inside. Shapes: ``[..., d]`` in and out.

``rotation_6d`` is the first two columns of the matrix (Zhou et al., 2019, "On the Continuity of
Rotation Representations in Neural Networks"); quaternions are (x, y, z, w) with w >= 0; Euler angles
are intrinsic x-y-z in radians; axis-angle is the rotation vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DIMS = {"euler_xyz": 3, "quaternion_xyzw": 4, "axis_angle": 3, "rotation_6d": 6}


def _unit(v: Array) -> Array:
    norm = np.linalg.norm(v, axis=-1, keepdims=True)
    if np.any(norm < 1e-8):
        raise ValueError("a rotation has a zero-length vector and no direction")
    return v / norm


def _from_axis_angle(v: Array) -> Array:
    angle = np.linalg.norm(v, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(v, -1, 0)
    zero = np.zeros_like(x)
    k = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*v.shape[:-1], 3, 3)
    small = angle < 1e-6
    safe = np.where(small, 1.0, angle)
    a = np.where(small, 1.0 - angle**2 / 6, np.sin(safe) / safe)
    b = np.where(small, 0.5 - angle**2 / 24, (1 - np.cos(safe)) / safe**2)
    return np.eye(3) + a * k + b * (k @ k)


def _from_quaternion(q: Array) -> Array:
    x, y, z, w = np.moveaxis(_unit(q), -1, 0)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return np.stack(rows, -1).reshape(*q.shape[:-1], 3, 3)


def _from_euler(e: Array) -> Array:
    eye = np.eye(3)
    rx, ry, rz = (_from_axis_angle(e[..., i : i + 1] * eye[i]) for i in range(3))
    return rx @ ry @ rz


def _from_6d(v: Array) -> Array:
    a = _unit(v[..., :3])
    b = v[..., 3:]
    b = _unit(b - np.sum(a * b, -1, keepdims=True) * a)
    return np.stack([a, b, np.cross(a, b)], -1)


def _to_quaternion(m: Array) -> Array:
    # The largest of the four candidates is numerically safe for every rotation.
    t = np.einsum("...ii", m)
    d = np.stack([m[..., 0, 0], m[..., 1, 1], m[..., 2, 2], t], -1)
    best = d.argmax(-1)
    out = np.empty((*m.shape[:-2], 4))
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        q = np.empty_like(out)
        q[..., i] = 1 - t + 2 * m[..., i, i]
        q[..., j] = m[..., j, i] + m[..., i, j]
        q[..., k] = m[..., k, i] + m[..., i, k]
        q[..., 3] = m[..., k, j] - m[..., j, k]
        out = np.where((best == i)[..., None], q, out)
    q = np.stack(
        [m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1], 1 + t], -1
    )
    out = _unit(np.where((best == 3)[..., None], q, out))
    return np.where(out[..., 3:] < 0, -out, out)


def _to_axis_angle(m: Array) -> Array:
    q = _to_quaternion(m)
    sin_half = np.linalg.norm(q[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sin_half, q[..., 3:])
    scale = np.where(sin_half < 1e-8, 2.0, angle / np.where(sin_half < 1e-8, 1.0, sin_half))
    return q[..., :3] * scale


def _to_euler(m: Array) -> Array:
    cos_y = np.hypot(m[..., 0, 0], m[..., 0, 1])
    y = np.arctan2(m[..., 0, 2], cos_y)
    lock = cos_y < 1e-7
    x = np.where(lock, np.arctan2(m[..., 2, 1], m[..., 1, 1]), np.arctan2(-m[..., 1, 2], m[..., 2, 2]))
    z = np.where(lock, 0.0, np.arctan2(-m[..., 0, 1], m[..., 0, 0]))
    return np.stack([x, y, z], -1)


def _to_6d(m: Array) -> Array:
    return np.concatenate([m[..., :, 0], m[..., :, 1]], -1)


_FROM: dict[str, Callable[[Array], Array]] = {
    "euler_xyz": _from_euler,
    "quaternion_xyzw": _from_quaternion,
    "axis_angle": _from_axis_angle,
    "rotation_6d": _from_6d,
}
_TO: dict[str, Callable[[Array], Array]] = {
    "euler_xyz": _to_euler,
    "quaternion_xyzw": _to_quaternion,
    "axis_angle": _to_axis_angle,
    "rotation_6d": _to_6d,
}


def to_matrix(values: NDArray[np.floating[Any]], kind: str) -> Array:
    """Rotation matrices ``[..., 3, 3]`` of ``values [..., d]`` in parametrisation ``kind``."""
    return _FROM[kind](np.asarray(values, np.float64))


def from_matrix(matrix: Array, kind: str) -> Array:
    """Inverse of :func:`to_matrix`."""
    return _TO[kind](np.asarray(matrix, np.float64))


def convert(values: NDArray[np.floating[Any]], old: str, new: str) -> Array:
    """``values [..., d_old]`` re-expressed as ``[..., d_new]``."""
    return from_matrix(to_matrix(values, old), new)
