"""Rotations that are none as a robot file says, or whose numbers jump: said before anything is trained."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import yaml
from vla_core import rotations
from vla_core.errors import UserError
from vla_data import LeRobotConfig, LeRobotSource

TOP = "observation.images.top"
LENGTHS = (12, 9)
FRAMES = sum(LENGTHS)


@pytest.fixture
def notes(write_lerobot, tmp_path):
    """What is said of rotations ``[F, D]`` that a robot file says are stored in some way."""

    number = count()

    def read(values, **group):
        action = np.asarray(values, np.float32)
        root = write_lerobot(
            tmp_path / f"{next(number)}", lengths=LENGTHS, cameras=(TOP,), columns={"action": action}, size=32
        )
        robot = {"embodiment": "arm", "action": [{"name": "turn", **group}]}
        (tmp_path / "robot.yaml").write_text(yaml.safe_dump(robot))
        return LeRobotSource(LeRobotConfig(str(root), robot=str(tmp_path / "robot.yaml")), 2).notes

    return read


def _turns(kind: str, fraction: float = 0.4) -> np.ndarray:
    """A slow turn about an oblique axis, up to a fraction of a whole one."""
    axis = np.array([0.6, 0.0, 0.8])
    turned = np.linspace(0.01, 2 * np.pi * fraction, FRAMES)[:, None] * axis
    return rotations.convert(turned, "axis_angle", kind)


@pytest.mark.parametrize("kind", ["euler_xyz", "quaternion_xyzw", "axis_angle", "rotation_6d"])
def test_sound_rotations_are_not_remarked(notes, kind):
    assert notes(_turns(kind), rotation=kind) == ()


def test_a_matrix_is_sound(notes):
    matrix = rotations.to_matrix(_turns("axis_angle"), "axis_angle").reshape(-1, 9)
    assert notes(matrix, rotation="matrix") == ()


def test_dims_beside_the_quaternion(notes):
    beside = np.c_[np.full(FRAMES, 0.35), _turns("quaternion_xyzw")][:, :4]
    (said,) = notes(beside, rotation="quaternion_xyzw")
    assert said.startswith("action 'turn' is stored as quaternion_xyzw and has vectors of length ")
    assert said.endswith("and a quaternion has 1; are these its dims?")


@pytest.mark.parametrize("kind", ["rotation_6d", "rotation_6d_rows"])
def test_six_numbers_that_are_no_rotation(notes, kind):
    (said,) = notes(np.tile([1.0, 0.0, 0.0, 0.8, 0.6, 0.0], (FRAMES, 1)), rotation=kind)
    assert "rows or columns that are not at right angles" in said


@pytest.mark.parametrize("kind", ["euler_xyz", "euler_zyx", "axis_angle"])
def test_degrees_taken_for_radians(notes, kind):
    said = notes(np.rad2deg(_turns("axis_angle")), rotation=kind)
    assert f"action 'turn' is stored as {kind} and reaches " in said[0]
    assert said[0].endswith("more than a whole turn in radians; are these degrees?")


def test_degrees_that_are_said_to_be_degrees(notes):
    with pytest.raises(
        UserError, match="a rotation in 'deg' would be computed with as radians; store radians, or"
    ):
        notes(_turns("euler_xyz"), rotation="euler_xyz", unit="deg")
    assert notes(np.rad2deg(_turns("euler_xyz")), unit="deg") == ()


def test_quaternions_that_change_their_sign(notes):
    values = _turns("quaternion_xyzw")
    values[[3, 15]] *= -1
    (said,) = notes(values, rotation="quaternion_xyzw")
    assert said.startswith("action 'turn' changes its sign, which turns nothing, 4 times within an episode")
    assert notes_of_6d(values) == ()


def notes_of_6d(values) -> tuple[str, ...]:
    from vla_core.specs import GroupSpec
    from vla_data.robot.odd_rotations import jumps

    turned = rotations.convert(values, "quaternion_xyzw", "rotation_6d").astype(np.float32)
    group = GroupSpec("turn", 6, "1", rotation="rotation_6d")
    return tuple(jumps([group], turned, np.ones(FRAMES - 1, np.bool_)))


@pytest.mark.parametrize("kind", ["euler_xyz", "axis_angle"])
def test_angles_that_wrap(notes, kind):
    about_z = np.linspace(0.5, 1.5, FRAMES)[:, None] * [0.0, 0.0, np.pi]
    values = rotations.convert(about_z, "axis_angle", kind)
    (said,) = notes(values, rotation=kind)
    assert said.startswith("action 'turn' jumps by a whole turn, which turns nothing, once within an episode")
    assert notes(values, rotation=kind, representation="delta") == ()


def test_another_episode_may_begin_anywhere(notes):
    values = _turns("quaternion_xyzw")
    values[LENGTHS[0] :] *= -1
    assert notes(values, rotation="quaternion_xyzw") == ()


def test_a_state_may_jump(write_lerobot, tmp_path):
    values = _turns("quaternion_xyzw").astype(np.float32)
    values[3] *= -1
    columns = {"action": np.zeros((FRAMES, 2), np.float32), "observation.state": values}
    root = write_lerobot(tmp_path / "state", lengths=LENGTHS, cameras=(TOP,), columns=columns, size=32)
    state = [{"name": "turn", "rotation": "quaternion_xyzw"}]
    robot = {"embodiment": "arm", "action": [{"name": "arm"}], "state": state}
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(robot))
    assert LeRobotSource(LeRobotConfig(str(root), robot=str(tmp_path / "robot.yaml")), 2).notes == ()
