"""LIBERO-plus's client against a stand-in for its package.

Calls and observations are those of sylvestf/LIBERO-plus at commit 4976dc3 (``benchmark/__init__.py``,
``envs/env_wrapper.py``).
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from vla_core.config import build_config
from vla_core.envs.libero_plus import LiberoPlusEnv
from vla_core.errors import ConfigError

SIZES = {"libero_spatial": 2402, "libero_object": 2518, "libero_goal": 2591, "libero_10": 2519}


class Simulator:
    """Its picture has a bright corner at the top left as robosuite stores it, which is the bottom."""

    def __init__(self, bddl_file_name: str, camera_heights: int, camera_widths: int) -> None:
        self.file, self.size, self.log = bddl_file_name, (camera_heights, camera_widths), []
        self.language_instruction = "what the scene says"

    def _see(self) -> dict:
        image = np.zeros((*self.size, 3), np.uint8)
        image[0, 0] = 255
        return {
            "agentview_image": image,
            "robot0_eye_in_hand_image": image + np.uint8(1),
            "robot0_eef_pos": np.array([0.1, 0.2, 0.3]),
            "robot0_eef_quat": np.array([1.0, 0.0, 0.0, 0.0]),  # half a turn about x
            "robot0_gripper_qpos": np.array([0.04, -0.04]),
        }

    def seed(self, seed: int) -> None:
        self.log.append(("seed", seed))

    def reset(self) -> dict:
        self.log.append("reset")
        return self._see()

    def set_init_state(self, state: float) -> dict:
        self.log.append(("state", state))
        return self._see()

    def step(self, action) -> tuple[dict, float, bool, dict]:
        assert len(action) == 7
        self.log.append(tuple(action))
        return self._see(), 0.0, len(self.log) == 6, {}

    def close(self) -> None:
        pass


@pytest.fixture
def make(monkeypatch):
    def build(sizes=SIZES, **options):
        class Benchmark:
            def __init__(self, suite: str) -> None:
                self.suite = suite

            def get_num_tasks(self) -> int:
                return sizes[self.suite]

            def get_task_init_states(self, i: int) -> list[float]:
                return [10.0 * i]

            def get_task(self, i: int) -> SimpleNamespace:
                return SimpleNamespace(language=f"task {i} of {self.suite}")

            def get_task_bddl_file_path(self, i: int) -> str:
                return f"{self.suite}/{i}_view_0_0_100_0_0_initstate_0_noise_15.bddl"

        modules = {
            name: ModuleType(name)
            for name in ("libero", "libero.libero", "libero.libero.benchmark", "libero.libero.envs")
        }
        modules["libero.libero.benchmark"].get_benchmark_dict = lambda: {
            s: lambda s=s: Benchmark(s) for s in sizes
        }
        modules["libero.libero.envs"].OffScreenRenderEnv = Simulator
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return LiberoPlusEnv(build_config(LiberoPlusEnv.Config, options, "env"))

    return build


def test_an_episode_begins_settled_in_its_one_initial_state(make) -> None:
    env = make(task="libero_goal_17", settle_steps=2)
    seen = env.reset(0)
    rest = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    assert env._env.log == [("seed", 0), "reset", ("state", 170.0), rest, rest]
    assert seen.instruction == "task 17 of libero_goal"
    assert env._env.file.endswith("noise_15.bddl")  # the simulator reads the perturbation from the name
    assert env.max_steps == 300


def test_a_sentence_can_do_without_the_numbers_of_the_perturbation(make) -> None:
    assert make(sentence="scene").reset(0).instruction == "what the scene says"


def test_pictures_are_turned_and_the_state_is_that_of_libero(make) -> None:
    env = make(image_size=32)
    seen = env.reset(0)
    assert seen.images["agentview"][-1, -1, 0] == 255
    assert seen.images["agentview"][0, 0, 0] == 0
    assert seen.images["wrist"][0, 0, 0] == 1
    np.testing.assert_allclose(seen.state, [0.1, 0.2, 0.3, np.pi, 0, 0, 0.04, -0.04], atol=1e-6)


def test_success_is_the_simulators_and_actions_are_clipped(make) -> None:
    env = make(settle_steps=0)
    env.reset(0)
    results = [env.step(np.array([2, -2, 0, 0, 0, 0, 1], np.float32)) for _ in range(3)]
    assert env._env.log[-1] == (1, -1, 0, 0, 0, 0, 1)
    assert [r.success for r in results] == [False, False, True]
    with pytest.raises(ValueError, match="reset"):
        env.step(np.zeros(7, np.float32))


def test_a_gripper_that_is_one_when_open_is_turned_into_the_simulators(make) -> None:
    env = make(settle_steps=0, gripper="open_positive")
    env.reset(0)
    env.step(np.array([0, 0, 0, 0, 0, 0, 1], np.float32))
    assert env._env.log[-1][6] == -1.0
    assert env.action_spec.groups[2].gripper == "open_positive"


def test_there_are_10030_tasks() -> None:
    assert len(set(LiberoPlusEnv.tasks())) == 10_030


def test_mistakes_are_one_line(make) -> None:
    with pytest.raises(ConfigError, match="libero_spatial_0 to libero_spatial_2401"):
        make(task="libero_spatial_2402")
    with pytest.raises(ConfigError, match="it is another one"):
        make(sizes={**SIZES, "libero_spatial": 10})  # LIBERO itself is installed
