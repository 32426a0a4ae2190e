"""Robot files that name other dims and cameras than the data set does."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from vla_data import LeRobotConfig, LeRobotSource

CAMERAS = ("observation.images.front", "observation.images.wrist")
NAMES = ["shoulder.pos", "elbow.pos", "gripper.pos"]


@pytest.fixture
def notes(write_lerobot, tmp_path):
    """What is said of a data set with named dims and two cameras, by a robot file's keys."""
    feature = {"dtype": "float32", "shape": [3], "names": NAMES}
    columns = {"action": np.zeros((5, 3), np.float32)}
    options = {"columns": columns, "features": {"action": feature}, "cameras": CAMERAS, "size": 32}
    root = write_lerobot(tmp_path / "named", lengths=(5,), **options)

    def read(action, **keys):
        (tmp_path / "robot.yaml").write_text(yaml.safe_dump({"embodiment": "arm", "action": action, **keys}))
        return LeRobotSource(LeRobotConfig(str(root), robot=str(tmp_path / "robot.yaml")), 2).notes

    return read


def _action(gripper: int) -> list[dict]:
    start = 0 if gripper else 1
    arm = {"name": "arm", "start": start, "end": start + 2}
    return [arm, {"name": "grip", "start": gripper, "end": gripper + 1, "gripper": "open_positive"}]


def test_names_that_agree(notes):
    assert notes(_action(2)) == ()
    assert notes(_action(2), cameras={"front": CAMERAS[0], "wrist": CAMERAS[1]}) == ()
    assert notes(_action(2), cameras={"top": CAMERAS[0], "hand": CAMERAS[1]}) == ()
    assert notes([{"name": "all"}]) == ()


def test_a_gripper_that_is_a_joint(notes):
    (said,) = notes(_action(0))
    assert said == (
        "action 'grip' is a gripper and made of shoulder.pos of 'action', whose gripper is called "
        "gripper.pos; is the robot file of this data set?"
    )


def test_cameras_with_each_others_names(notes):
    said = notes(_action(2), cameras={"wrist": CAMERAS[0], "front": CAMERAS[1]})
    assert set(said) == {
        f"camera 'wrist' shows '{CAMERAS[0]}', and the data set has '{CAMERAS[1]}'; are they swapped?",
        f"camera 'front' shows '{CAMERAS[1]}', and the data set has '{CAMERAS[0]}'; are they swapped?",
    }
