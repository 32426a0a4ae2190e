"""The LIBERO adapter against a recording of LIBERO's own loop (``record_libero.py``); no simulator needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vla_core.config import build_config
from vla_core.envs import _libero_tasks, libero
from vla_core.envs.libero import LiberoConfig, LiberoEnv
from vla_core.errors import ConfigError
from vla_core.registry import load

RAW = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
CAMERAS = ("agentview", "robot0_eye_in_hand")


class Recorded:
    """Stands for the simulator: answers what was recorded, and keeps what it was asked."""

    def __init__(self, task, size, full):
        self.log = np.load(Path(__file__).with_name("libero_recording.npz"))
        self.task, self.size, self.full = task, size, full
        self.starts = np.arange(50.0)[:, None]
        self.sentence = str(self.log["sentence"])
        self.resets, self.actions, self.done_at, self.true = [], [], None, set()

    def _raw(self):
        at = min(len(self.actions), len(self.log[RAW[0]]) - 1)
        return {key: self.log[key][at] for key in RAW}

    def reset(self, seed, start):
        self.resets.append((seed, None if start is None else float(start[0])))
        self.actions = []
        return self._raw()

    def step(self, action):
        self.actions.append(action)
        return self._raw(), len(self.actions) == self.done_at

    def holds(self, predicate):
        return predicate in self.true

    def image(self, camera):
        return self.log["upright"][CAMERAS.index(camera)]

    def depth(self, camera):
        return self.image(camera)[..., 0].astype(np.float32)

    def close(self):
        pass


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(libero, "LiberoSimulator", Recorded)
    monkeypatch.setattr(libero, "sentence_of", lambda task: f"do {task.suite} {task.index}")
    return lambda **options: LiberoEnv(build_config(LiberoConfig, {"image_size": 32, **options}, "env"))


def test_states_and_pictures_are_those_of_the_official_loop(make):
    env = make()
    first = env.reset(10_003)
    log = env._sim.log
    assert env._sim.resets == [(0, 3.0)], "seed 10003 is the fourth of fifty initial states"
    assert np.array_equal(env._sim.actions, log["rest"]), "ten steps without motion, gripper open"
    assert first.instruction == (
        "pick up the black bowl between the plate and the ramekin and place it on the plate"
    )
    result = None
    for action in log["actions"]:
        result = env.step(action.astype(np.float32))
    assert np.allclose(env._sim.actions[10:], log["actions"])
    observation = result.observation
    np.testing.assert_allclose(observation.state, log["official_state"], atol=1e-6)
    assert observation.state[3] > np.pi, "the angle goes on beyond half a turn"
    for name, shown in zip(("agentview", "wrist"), log["official_images"], strict=True):
        # The two renderers do not smooth alike; another orientation differs by more than 20.
        assert np.abs(observation.images[name].astype(int) - shown).mean() < 2
    assert not result.success
    assert not result.terminated
    assert not result.truncated


def test_specs_are_those_of_the_robot_description(make):
    env = make(cameras=["wrist"], depth=True)
    observation = env.reset(0)
    assert [c.name for c in env.observation_spec.cameras] == ["wrist"] == list(observation.images)
    assert env.observation_spec.state_dim == 8
    assert env.action_spec.dim == 7
    assert env.action_spec.control_hz == 20
    assert env.action_spec.groups[2].gripper == "close_positive"
    assert np.array_equal(observation.depth["wrist"], observation.images["wrist"][..., 0])


def test_a_gripper_that_is_one_when_open_is_turned_into_the_simulators(make):
    # StarVLA's LIBERO client (commit 0ed0aad): 1 - 2 * (open > 0.5); the six others as they are.
    env = make(gripper="open_positive")
    env.reset(0)
    assert env.action_spec.groups[2].gripper == "open_positive"
    for opened, sent in ((1.0, -1.0), (0.6, -1.0), (0.4, 1.0), (0.0, 1.0)):
        env.step(np.array([0.5, 2, 0, 0, 0, 0, opened], np.float32))
        assert env._sim.actions[-1].tolist() == [0.5, 1, 0, 0, 0, 0, sent]


def test_success_ends_an_episode(make):
    env = make()
    env.reset(0)
    env._sim.done_at = 11
    result = env.step(np.full(7, 3.0, np.float32))
    assert np.array_equal(env._sim.actions[-1], np.ones(7)), "clipped to the controller's range"
    assert result.success
    assert result.terminated
    assert result.achieved == {"libero_spatial_0"}
    with pytest.raises(ValueError, match="reset"):
        env.step(np.zeros(7, np.float32))
    env._sim.done_at = None
    env.reset(1)
    assert not env.step(np.zeros(7, np.float32)).success


SECOND = ("on", "akita_black_bowl_2", "plate_1")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"task": "libero_spatial_8"}, {"libero_spatial_1"}),
        ({"task": "libero_spatial_8", "variant": "language"}, {"libero_spatial_1"}),
        ({"task": "libero_spatial_8", "variant": "swap"}, set()),
        ({"task": "libero_object_8"}, {"libero_object_2"}),
        ({"task": "libero_object_8", "variant": "swap"}, {"libero_object_2"}),
        ({"task": "libero_object_8", "variant": "task"}, set()),
        ({"task": "libero_object_1"}, set()),
        ({"task": "libero_goal_1"}, set()),
    ],
)
def test_another_bowl_or_thing_is_what_another_task_asks_for(make, options, named):
    env = make(**options)
    env.reset(0)
    assert not env.step(np.zeros(7, np.float32)).achieved
    env._sim.true |= {SECOND, ("in", "salad_dressing_1", "basket_1_contain_region")}
    result = env.step(np.zeros(7, np.float32))
    assert result.achieved == named
    assert not result.success
    assert not result.terminated
    env._sim.true.clear()
    assert not env.step(np.zeros(7, np.float32)).achieved


def test_it_says_the_sentence_of_another_task(make):
    env = make(variant="task", instruction_task="libero_spatial_1")
    assert env._sim.task.folder == "libero_spatial_task"
    assert env.reset(0).instruction == "do libero_spatial 1"
    assert env.step(np.zeros(7, np.float32)).observation.instruction == "do libero_spatial 1"


def test_limits_and_starts(make):
    env = make(max_steps=2, start="random", settle_steps=0, instruction="wave", rendering="fast")
    assert env.reset(7).instruction == "wave"
    assert env._sim.resets == [(7, None)]
    assert not env._sim.full
    assert not env.step(np.zeros(7, np.float32)).truncated
    assert env.step(np.zeros(7, np.float32)).truncated
    with pytest.raises(ValueError, match="reset"):
        env.step(np.zeros(7, np.float32))
    with pytest.raises(ValueError, match="negative"):
        env.reset(-1)
    env.reset(0)
    for action in (np.zeros(6), np.full(7, np.nan)):
        with pytest.raises(ValueError, match="7 finite numbers"):
            env.step(action.astype(np.float32))


@pytest.mark.parametrize(
    ("task", "steps"),
    [
        ("libero_spatial_9", 220),
        ("libero_object_0", 280),
        ("libero_goal_0", 300),
        ("libero_10_0", 520),
        ("libero_90_89", 400),
    ],
)
def test_horizons_of_the_suites(make, task, steps):
    assert make(task=task).max_steps == steps


def test_tasks_and_entry_point():
    assert load("vla.envs", "libero") is LiberoEnv
    assert len(LiberoEnv.tasks()) == len(set(LiberoEnv.tasks())) == 130


def test_variants_name_the_suites_of_libero_pro():
    task = _libero_tasks.find("libero_10_3", "language")
    assert (task.suite, task.index, task.folder, task.horizon) == ("libero_10", 3, "libero_10_lan", 520)
    assert task.sentence("as ever", "reworded") == "reworded"
    assert _libero_tasks.find("libero_goal_3", "task").sentence("as ever", "other") == "other"
    swapped = _libero_tasks.find("libero_goal_3", "swap")
    assert swapped.folder == "libero_goal_swap"
    assert swapped.sentence("as ever", "of the scene") == "as ever"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"task": "libero_spatal_3"}, "did you mean 'libero_spatial_3'"),
        ({"task": "libero_90_3", "variant": "swap"}, "none of libero_90"),
        ({"cameras": ["agentviw"]}, "did you mean 'agentview'"),
        ({"cameras": []}, "at least one camera"),
        ({"cameras": ["wrist", "wrist"]}, "named twice"),
        ({"image_size": 8}, "image_size"),
        ({"variant": "swapped"}, "variant"),
        ({"start": "oficial"}, "start"),
        ({"rendering": "quick"}, "rendering"),
        ({"gripper": "open"}, "gripper"),
        ({"instruction_task": "libero_spatial_11"}, "no LIBERO task"),
        ({"instruction": "wave", "instruction_task": "libero_spatial_1"}, "exclude"),
    ],
)
def test_mistakes(make, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        make(**options)


def test_it_imports_without_simulator_torch_or_gl_and_says_what_is_missing():
    code = """
import sys
for name in ("libero", "torch", "mujoco"):
    sys.modules[name] = None
from vla_core.envs.libero import LiberoConfig, LiberoEnv
from vla_core.errors import ConfigError
try:
    LiberoEnv(LiberoConfig())
except ConfigError as error:
    assert "vla-core[libero]" in str(error), error
else:
    raise AssertionError("it opened")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
