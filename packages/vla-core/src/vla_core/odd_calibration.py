"""Calibration that cannot be of the camera it is given for. Shapes: F frames, H, W pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vla_core.types import Float

CENTRE = (0.3, 0.7)
"""Where the principal point of a lens lies, as a share of the picture: near the middle, also after a crop."""
FAR = 100.0
"""Metres from the origin to a camera that sees what a robot does."""
NEAR_ONE = 0.05


def odd_calibration(
    kinds: Mapping[str, Mapping[str, Float]], sizes: Mapping[str, tuple[int, int]]
) -> Iterator[str]:
    """A line for each camera whose numbers are of another size, layout or unit.

    Args:
        kinds: ``intrinsics`` and ``extrinsics`` -> camera -> ``[F, 3, 3]`` and ``[F, 4, 4]``.
        sizes: (H, W) of each camera's pictures.
    """
    for camera, k in kinds.get("intrinsics", {}).items():
        high, wide = sizes[camera]
        x, y = (float(value) for value in np.median(k[:, :2, 2], axis=0))
        if not (CENTRE[0] < x / wide < CENTRE[1] and CENTRE[0] < y / high < CENTRE[1]):
            yield (
                f"intrinsics of camera '{camera}' have their centre at ({x:g}, {y:g}), and its pictures are "
                f"{wide} x {high}; are they of pictures of another size?"
            )
    for camera, pose in kinds.get("extrinsics", {}).items():
        said = _odd_pose(pose.astype(np.float64))
        if said is not None:
            yield f"extrinsics of camera '{camera}' {said}"


def _odd_pose(pose: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str | None:
    if np.abs(pose[:, 3] - [0, 0, 0, 1]).max() > NEAR_ONE:
        return "have another last row than 0, 0, 0, 1; are they transposed?"
    turn = pose[:, :3, :3]
    if np.abs(turn @ np.swapaxes(turn, 1, 2) - np.eye(3)).max() > NEAR_ONE:
        return "turn by a matrix that is no rotation; a pose is camera to world, in metres"
    if float(np.median(np.linalg.norm(pose[:, :3, 3], axis=1))) > FAR:
        return "put it more than 100 m from the origin; are they in millimetres?"
    return None
