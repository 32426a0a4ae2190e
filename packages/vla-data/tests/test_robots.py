"""Robots from modality.json and YAML: groups, rotations, grippers, camera names; each against plain numpy."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_core import rotations
from vla_core.errors import UserError
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.robot import rotations as stored
from vla_data.robot.config import load_robot

FRAMES = 10
RNG = np.random.default_rng(3)
STATE = RNG.standard_normal((FRAMES, 12)).astype(np.float32)
ACTION = RNG.standard_normal((FRAMES, 10))
EXTRA = RNG.standard_normal((FRAMES, 2)).astype(np.float32)


@pytest.fixture
def data(write_lerobot, tmp_path):
    return write_lerobot(
        tmp_path / "data",
        version="v2.1",
        lengths=(6, 4),
        cameras=("observation.images.ego_view", "observation.images.absent"),
        columns={"observation.state": STATE, "action": ACTION, "action.extra": EXTRA},
    )


def _modality(root, **changes) -> None:
    content = {
        "state": {
            "arm": {"start": 8, "end": 12, "rotation_type": "quaternion"},
            "leg": {"start": 0, "end": 2},
        },
        "action": {
            "turn": {"start": 3, "end": 9, "rotation_type": "rotation_6d", "absolute": False},
            "place": {"start": 0, "end": 3, "absolute": True, "dtype": "float64", "range": [-9, 9]},
            "extra": {"start": 1, "end": 2, "original_key": "action.extra"},
        },
        "video": {"ego": {"original_key": "observation.images.ego_view"}},
        "annotation": {"human.validity": {}, "human.task": {"original_key": "task_index"}},
        **changes,
    }
    (root / "meta/modality.json").write_text(json.dumps(content))


def test_modality_is_honoured(data):
    _modality(data)
    source = LeRobotSource(LeRobotConfig(str(data)), 3)
    spec = source.spec
    assert [c.name for c in spec.observation.cameras] == ["ego"]
    assert [(g.name, g.dim, g.rotation) for g in spec.observation.state] == [
        ("arm", 4, "quaternion_xyzw"), ("leg", 2, "none"),
    ]  # fmt: skip
    assert [(g.name, g.dim, g.rotation, g.representation) for g in spec.action.groups] == [
        ("turn", 6, "rotation_6d", "delta"),
        ("place", 3, "none", "absolute"),
        ("extra", 1, "none", "absolute"),
    ]  # fmt: skip
    state, action = source.rows("state"), source.rows("action")
    assert np.array_equal(state[:, 4:], STATE[:, :2])
    quaternion = STATE[:, [9, 10, 11, 8]] / np.linalg.norm(STATE[:, 8:], axis=1, keepdims=True)
    quaternion *= np.where(quaternion[:, 3:] < 0, -1, 1)
    assert np.allclose(state[:, :4], quaternion, atol=1e-6)
    assert np.array_equal(action[:, 6:9], ACTION[:, :3].astype(np.float32))
    assert np.array_equal(action[:, 9], EXTRA[:, 1])
    # The stored six numbers are the first two rows of the matrix, ours its first two columns.
    first = ACTION[:, 3:6] / np.linalg.norm(ACTION[:, 3:6], axis=1, keepdims=True)
    assert np.allclose(action[:, [0, 3]], first[:, :2], atol=1e-6)
    # Past the end a delta is 0 and a target is held.
    past = source.numeric(FRAMES - 1)[1][1:]
    assert not past[:, :6].any()
    assert np.allclose(past[:, 6:], action[-1, 6:])
    assert source.instruction(1) == "pull it"


def test_an_annotation_wins_over_a_task_that_says_nothing(data):
    _modality(data)
    lines = [
        {"task_index": 0, "task": "valid"},
        {"task_index": 1, "task": ""},
        {"task_index": 2, "task": "go"},
    ]
    (data / "meta/tasks.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    with pytest.raises(UserError, match=r"episode 0, frame 0: no instruction \(task_index is 0, meta"):
        LeRobotSource(LeRobotConfig(str(data)), 1)
    for file in data.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.append_column("annotation.human.validity", [[2] * len(table)]), file)
    assert LeRobotSource(LeRobotConfig(str(data)), 1).instruction(0) == "go"


def _a(start, end, **rest):
    return {"action": {"a": {"start": start, "end": end, **rest}}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (_a(0, 99), r"action group 'a' is dims \[0, 99\) of 'action', which has 10"),
        (_a(4, 4), "group 'a': .*0 <= start < end"),
        ({"action": {"a": {"start": 0}}}, "action.a needs 'start' and 'end'"),
        (_a(0, 1, original_key="actoin"), "no column 'actoin'.*mean 'action'"),
        (_a(0, 3, rotation_type="yaw"), "rotation_type: 'yaw' is unknown"),
        (_a(0, 3, rotation_type="matrix"), "has 9 dims, and this group has 3"),
        ({"action": []}, "must be a mapping with 'action' groups"),
        ({"video": {"x": {"original_key": "observation.images.x"}}}, "meta/info.json has no feature"),
    ],
)  # fmt: skip
def test_a_wrong_modality_is_one_line(data, changes, says):
    _modality(data, **changes)
    with pytest.raises(UserError, match=says) as error:
        LeRobotSource(LeRobotConfig(str(data)), 1)
    assert "\n" not in str(error.value)


YAML = """
embodiment: lab_arm
control_hz: 15
cameras: {wrist: observation.images.absent, front: observation.images.ego_view}
state:
  - {name: joints, end: 7, unit: rad}
action:
  - {name: position, end: 3, unit: m, representation: delta}
  - {name: rotation, start: 3, end: 6, unit: rad, rotation: euler_fixed_xyz, to: axis_angle}
  - {name: gripper, start: 6, end: 7, unit: "1", gripper: open_positive, threshold: 0.5}
"""


def test_a_robot_in_yaml(data, tmp_path):
    file = tmp_path / "robot.yaml"
    file.write_text(YAML)
    _modality(data)
    source = LeRobotSource(LeRobotConfig(str(data), robot=str(file)), 2)
    assert source.spec.embodiment == "lab_arm"
    assert source.spec.action.control_hz == 15
    assert [c.name for c in source.spec.observation.cameras] == ["wrist", "front"]
    only = LeRobotSource(LeRobotConfig(str(data), robot=str(file), cameras=("front",)), 2)
    plain = LeRobotSource(LeRobotConfig(str(data)), 2)
    assert np.array_equal(only[3].observation.images["front"], plain[3].observation.images["ego"])
    action = source.rows("action")
    assert np.array_equal(source.rows("state"), STATE[:, :7])
    assert np.array_equal(action[:, :3], ACTION[:, :3].astype(np.float32))
    assert np.array_equal(action[:, 6], (ACTION[:, 6] > 0.5).astype(np.float32))
    assert source.spec.action.groups[2].gripper == "open_positive"
    roll, pitch, yaw = ACTION[:, 3:6].T
    turns = [
        rotations.to_matrix(angle[:, None] * np.eye(3)[axis], "axis_angle")
        for axis, angle in enumerate((roll, pitch, yaw))
    ]
    want = turns[2] @ turns[1] @ turns[0]
    assert np.allclose(rotations.to_matrix(action[:, 3:6], "axis_angle"), want, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("joints, end", "joints, ends", r"robot\.yaml:6: unknown key 'state\.0\.ends'"),
        ("euler_fixed_xyz", "euler", r"robot\.yaml:9: .*'action\.1\.rotation'"),
        ("absent", "gone", "cameras.wrist: .* has no pictures 'observation.images.gone'"),
        ("observation.images.absent", "observation.images.ego_view", "two cameras show"),
        ("gripper: open_positive, ", "", "'threshold' needs 'gripper'"),
        ("rotation: euler_fixed_xyz, ", "", "'to' needs 'rotation'"),
        ("name: gripper", "name: position", "two groups are named 'position'"),
        ("control_hz: 15", "control_hz: 0", "control_hz'?: must be > 0"),
        ("end: 7, unit: rad", "end: 70, unit: rad", r"state group 'joints' is dims \[0, 70\)"),
    ],
)
def test_a_wrong_robot_is_one_line(data, tmp_path, old, new, says):
    file = tmp_path / "robot.yaml"
    assert old in YAML
    file.write_text(YAML.replace(old, new, 1))
    with pytest.raises(UserError, match=says) as error:
        LeRobotSource(LeRobotConfig(str(data), robot=str(file)), 1)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such config file"):
        load_robot(tmp_path / "none.yaml")


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(stored.DIMS)),
    angles=st.lists(st.floats(-3.1, 3.1), min_size=3, max_size=3),
    wanted=st.sampled_from(["euler_xyz", "quaternion_xyzw", "axis_angle", "rotation_6d"]),
)
def test_every_stored_rotation_stays_the_same_rotation(kind, angles, wanted):
    """Against turns composed by hand, in the order that the kind's definition gives."""
    turn = {
        axis: [rotations.to_matrix(a * np.eye(3)[i], "axis_angle") for a in angles]
        for i, axis in enumerate("xyz")
    }
    if kind.startswith("euler"):
        order = kind[-3:]
        parts = [turn[axis][i] for i, axis in enumerate(order)]
        matrix = parts[2] @ parts[1] @ parts[0] if "fixed" in kind else parts[0] @ parts[1] @ parts[2]
        value = np.array(angles)
    else:
        matrix = turn["x"][0] @ turn["y"][1] @ turn["z"][2]
        quaternion = rotations.from_matrix(matrix, "quaternion_xyzw")
        value = {
            "matrix": matrix.reshape(-1),
            "quaternion_xyzw": quaternion,
            "quaternion_wxyz": quaternion[[3, 0, 1, 2]],
            "axis_angle": rotations.from_matrix(matrix, "axis_angle"),
            "rotation_6d": matrix[:, :2].T.reshape(-1),
            "rotation_6d_rows": matrix[:2].reshape(-1),
        }[kind]
    found = stored.convert(value[None].astype(np.float32), kind, wanted)
    assert np.allclose(rotations.to_matrix(found[0], wanted), matrix, atol=2e-5)
