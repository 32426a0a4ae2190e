"""Rotations that are none as they are stored, or that jump where the robot did not.

Shapes: F frames, D dims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from vla_core.rotations import DIMS
from vla_core.specs import GroupSpec
from vla_core.types import Float

from vla_data.robot.config import GroupConfig

OFF = 0.1
"""How far from 1 the length of a vector may be that has 1, and from 0 what two of them have in common."""
SHARE = 0.01
"""Of the frames that may be so: a sensor may fail now and then."""


def malformed(group: GroupConfig, part: Float) -> str | None:
    """Why the numbers ``part [F, D]`` of a group cannot be stored as it says; None: they can."""
    kind, values = group.rotation, part.astype(np.float64)
    if kind.startswith("euler") or kind == "axis_angle":
        # A turn about an axis is told by the length of a vector, three turns by a number each.
        size = np.abs(values) if kind.startswith("euler") else np.linalg.norm(values, axis=1, keepdims=True)
        most = float(size.max(initial=0))
        if (size.max(axis=1) > 2 * np.pi * (1 + OFF)).mean() > SHARE:
            return f"reaches {most:.4g}, more than a whole turn in radians; are these degrees?"
        return None
    vectors = values.reshape(len(values), -1, 4 if kind.startswith("quaternion") else 3)
    lengths = np.linalg.norm(vectors, axis=2)
    if (np.abs(lengths - 1) > OFF).any(axis=1).mean() > SHARE:
        what = "a quaternion" if kind.startswith("quaternion") else "each row or column of a rotation"
        return f"has vectors of length {float(np.median(lengths)):.3g}, and {what} has 1; are these its dims?"
    if vectors.shape[1] > 1:
        common = np.abs(np.einsum("fij,fkj->fik", vectors, vectors) - np.eye(vectors.shape[1])).max(
            axis=(1, 2)
        )
        if (common > 2 * OFF).mean() > SHARE:
            return (
                "has rows or columns that are not at right angles, so it is no rotation; are these its dims?"
            )
    return None


def jumps(groups: Sequence[GroupSpec], rows: Float, inside: NDArray[np.bool_]) -> Iterator[str]:
    """A line for each absolute rotation of actions ``[F, D]`` whose numbers jump where it hardly turns.

    Of the state nothing is averaged, and where a hand points down its angles jump in most data sets.
    ``inside [F - 1]``: whether a row and the next are of one episode.
    """
    start = 0
    for group in groups:
        part = rows[:, start : start + group.dim]
        start += group.dim
        if group.representation != "absolute" or group.dim != DIMS.get(group.rotation):
            continue
        now, then = part[1:][inside], part[:-1][inside]
        if group.rotation == "quaternion_xyzw":
            count, why = int(((now * then).sum(axis=1) < 0).sum()), "changes its sign, which turns nothing"
        elif group.rotation == "rotation_6d":
            continue
        else:
            count = int((np.linalg.norm(now - then, axis=1) > np.pi).sum())
            why = "jumps by a whole turn, which turns nothing"
        if count:
            times = "once" if count == 1 else f"{count} times"
            yield (
                f"action '{group.name}' {why}, {times} within an episode: a policy would average both; "
                "'to: rotation_6d' in a robot file, or convert_rotation, has no such jumps"
            )
