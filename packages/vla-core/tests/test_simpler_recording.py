"""SimplerEnv's client against a recording of the simulator (``record_simpler.py``); no simulator needed.

Recorded with simpler-env/SimplerEnv at commit 4ab7178, ManiSkill2_real2sim at ef7a4d4 and SAPIEN 2.2.2 on a
CPU (Mesa 26.1.6's Vulkan). A plain box stood for the table's mesh, under the photograph that hides it;
robots, objects, controllers, physics, success and rendering are the simulator's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from vla_core.envs._fixed_angles import angles_of
from vla_core.envs.simpler import SimplerConfig, SimplerEnv
from vla_core.images import resize
from vla_core.rotations import to_matrix

LOG = np.load(Path(__file__).with_name("simpler_recording.npz"))
EPISODES = {
    "widowx": ("widowx_carrot_on_plate", 0, "3rd_view_camera", "front"),
    "google_robot": ("google_robot_pick_standing_coke_can", 12, "overhead_camera", "head"),
}
ROBOTS = pytest.mark.parametrize("robot", EPISODES)


def log(robot: str, key: str) -> np.ndarray:
    return LOG[f"{robot}/{key}"]


class Recorded:
    """Answers what was recorded, and wants the commands that were sent."""

    def __init__(self, robot: str) -> None:
        self.robot, self.camera, self.unwrapped = robot, EPISODES[robot][2], self
        self.agent = SimpleNamespace(get_gripper_closedness=lambda: log(robot, "closed")[self.at])
        self.at = 0

    @property
    def tcp(self) -> SimpleNamespace:
        pose = log(self.robot, "tcp")[self.at]
        return SimpleNamespace(pose=SimpleNamespace(p=pose[:3], q=pose[3:]))

    def get_language_instruction(self) -> str:
        return str(log(self.robot, "instruction")[self.at])

    def _observe(self) -> dict:
        picture = log(self.robot, "pictures")[int(self.at == len(log(self.robot, "sent")))]
        base = log(self.robot, "base")[self.at]
        return {"image": {self.camera: {"rgb": picture}}, "agent": {"base_pose": base}, "extra": {}}

    def reset(self, options: dict) -> tuple[dict, dict]:
        objects = {key: np.asarray(value).tolist() for key, value in options["obj_init_options"].items()}
        assert objects == json.loads(str(log(self.robot, "options")))
        self.at = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        np.testing.assert_allclose(action, log(self.robot, "sent")[self.at], atol=1e-6)
        done, truncated, grasped = (
            bool(log(self.robot, key)[self.at]) for key in ("done", "truncated", "grasped")
        )
        self.at += 1
        stats = {"is_src_obj_grasped": grasped} if self.robot == "widowx" else {}
        return self._observe(), float(done), done, truncated, {"episode_stats": stats}

    def close(self) -> None:
        pass


@pytest.fixture
def make(monkeypatch):
    def build(robot: str) -> SimplerEnv:
        builder, assets = ModuleType("simpler_env.utils.env.env_builder"), ModuleType("mani_skill2_real2sim")
        builder.build_maniskill2_env = lambda name, **_: Recorded(robot)
        builder.get_robot_control_mode = lambda robot, policy: f"of {robot}"
        assets.ASSET_DIR = Path("assets")
        for name in ("simpler_env", "simpler_env.utils", "simpler_env.utils.env"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        for module in (builder, assets):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return SimplerEnv(SimplerConfig(task=EPISODES[robot][0]))

    return build


@ROBOTS
def test_the_client_does_the_recorded_episode(make, robot: str) -> None:
    """From the wishes to the commands that were sent, and from what was seen to states, score and success."""
    task, seed, _, camera = EPISODES[robot]
    env = make(robot)
    seen = env.reset(seed)
    states, results = [seen.state], []
    for wish in log(robot, "wishes"):
        results.append(env.step(wish))
        states.append(results[-1].observation.state)
    np.testing.assert_allclose(states, log(robot, "state"), atol=1e-5)
    assert seen.instruction == {"widowx": "put carrot on plate", "google_robot": "pick coke can"}[robot]
    last = results[-1]
    assert (len(results), last.success, last.terminated) == (
        {"widowx": 60, "google_robot": 80}[robot],
        True,
        True,
    )
    assert last.achieved == {task}
    # Done long before the end, and not counted before the end.
    assert log(robot, "done")[:-1].any()
    assert not any(result.success or result.terminated or result.truncated for result in results[:-1])
    # The simulator's own limit is the client's.
    assert list(np.flatnonzero(log(robot, "truncated"))) == [len(results) - 1]
    grasped = [result.score for result in results]
    if robot == "widowx":
        assert (grasped[0], grasped[-1]) == (0.0, 1.0)
        assert sorted(grasped) == grasped  # once grasped is grasped, though it was let go
    else:
        assert set(grasped) == {None}
    for at, step in ((0, seen), (1, last.observation)):
        picture = log(robot, "pictures")[at]
        np.testing.assert_array_equal(step.images[camera], resize(picture, *step.images[camera].shape[:2]))


@ROBOTS
def test_simplerenvs_evaluator_saw_the_same(robot: str) -> None:
    """Given the same commands for the same episode: every picture is the client's, from first to last."""
    assert log(robot, "official_success")
    assert list(log(robot, "official_apart")) == [0] * len(log(robot, "state"))
    first, last = log(robot, "pictures")
    np.testing.assert_array_equal(log(robot, "official_pictures"), [first, last])
    assert np.abs(first.astype(int) - last).max() > 100


@ROBOTS
def test_what_is_wished_is_what_is_seen_to_happen(robot: str) -> None:
    """Axes, signs and units of action and state agree: the hand goes where it was wished, in metres."""
    states, wishes = log(robot, "state"), log(robot, "wishes")
    moved, wished = np.diff(states[:, :3], axis=0), wishes[:, :3]
    for axis in range(3):
        assert np.corrcoef(moved[1:, axis], wished[:-1, axis])[0, 1] > 0.6
    np.testing.assert_allclose(
        states[0, :2], [[0.292, -0.006], [0.439, -0.218]][robot != "widowx"], atol=1e-3
    )
    gripper = states[1:, -1] if robot == "widowx" else 1 - states[1:, -1]  # 1 is open
    held = wishes[:, 6] < 0.5
    first = int(np.argmax(held))
    assert gripper[:first].min() > 0.99
    assert gripper[first + 4 : first + int(np.argmin(held[first:]) or held.sum()) - 1].max() < 0.9


@ROBOTS
def test_turns_are_about_the_axes_of_the_base(robot: str) -> None:
    """Four steps of 0.1 rad about one axis; the Google robot's planner lags behind."""
    for axis, states in enumerate(log(robot, "turn_states")):
        if robot == "widowx":
            turn, least = states[-1, 3:6] - states[0, 3:6], 0.37
        else:
            before, after = (to_matrix(state[3:7], "quaternion_xyzw") for state in (states[0], states[-1]))
            turn, least = angles_of(after @ before.T), 0.1
        assert least < turn[axis] < 0.4
        assert np.abs(np.delete(turn, axis)).max() < 0.03
        np.testing.assert_allclose(states[-1, :3], states[0, :3], atol=0.01)  # about the hand itself
