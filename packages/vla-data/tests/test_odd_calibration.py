"""Calibration of another size, layout or unit: said before anything is trained on it."""

from __future__ import annotations

import numpy as np
import pytest
from vla_core import rotations
from vla_core.odd_calibration import odd_calibration
from vla_data import LeRobotConfig, LeRobotSource

SIZES = {"top": (48, 64)}


def _intrinsics(x: float, y: float) -> dict[str, dict[str, np.ndarray]]:
    k = np.array([[70, 0, x], [0, 70, y], [0, 0, 1]], np.float32)
    return {"intrinsics": {"top": np.tile(k, (5, 1, 1))}}


def _extrinsics(unit: float = 1.0) -> np.ndarray:
    pose = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
    pose[:, :3, :3] = rotations.to_matrix(np.array([0.3, -0.8, 0.4]), "axis_angle")
    pose[:, :3, 3] = unit * np.array([0.4, -0.2, 0.9])
    return pose


@pytest.mark.parametrize(("x", "y"), [(32, 24), (28, 26), (31.5, 23.5)])
def test_a_centre_near_the_middle(x, y):
    assert list(odd_calibration(_intrinsics(x, y), SIZES)) == []


@pytest.mark.parametrize(("x", "y"), [(320, 240), (16, 12), (64, 48), (24, 32.0 + 8)])
def test_a_centre_of_pictures_of_another_size(x, y):
    (said,) = odd_calibration(_intrinsics(x, y), SIZES)
    assert said.startswith(
        f"intrinsics of camera 'top' have their centre at ({x:g}, {y:g}), and its pictures are 64"
    )


@pytest.mark.parametrize(
    ("pose", "says"),
    [
        (_extrinsics(), None),
        (np.swapaxes(_extrinsics(), 1, 2), "have another last row than 0, 0, 0, 1; are they transposed?"),
        (_extrinsics() * np.array([2, 2, 2, 1], np.float32)[:, None], "turn by a matrix that is no rotation"),
        (_extrinsics(1000.0), "put it more than 100 m from the origin; are they in millimetres?"),
    ],
)
def test_poses(pose, says):
    said = list(odd_calibration({"extrinsics": {"top": pose}}, SIZES))
    assert said == [] if says is None else said[0].startswith(f"extrinsics of camera 'top' {says}")


def test_a_data_set_whose_pictures_were_made_smaller(write_lerobot, tmp_path):
    k = np.array([600, 0, 320, 0, 600, 240, 0, 0, 1], np.float32)
    columns = {"action": np.zeros((5, 2)), "observation.intrinsics.top": np.tile(k, (5, 1))}
    root = write_lerobot(tmp_path / "d", lengths=(5,), cameras=("observation.images.top",), columns=columns)
    (said,) = LeRobotSource(LeRobotConfig(str(root)), 2).notes
    assert said.endswith("at (320, 240), and its pictures are 64 x 64; are they of pictures of another size?")
