"""CALVIN's client against a recording of its simulator (``record_calvin.py``); no simulator needed.

Recorded with mees/calvin_env at commit 797142c (scene D of its repository, PyBullet 3.2.7 on a CPU) and the
criteria and sentences of mees/calvin at fa03f01: a script turns on the LED and lifts the pink block.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from vla_core.envs.calvin import CalvinConfig, CalvinEnv

LOG = np.load(Path(__file__).with_name("calvin_recording.npz"))
TASKS = ("turn_on_led", "lift_pink_block_table")
SENTENCES = """
turn_on_led: ["press the button to turn on the led light"]
lift_pink_block_table: ["grasp and lift the pink block"]
"""


class Recorded:
    """Answers what was recorded, and wants the start and the commands of the recording; also its criteria."""

    cid = 0

    robot = SimpleNamespace(gripper_action=-1)

    def __init__(self) -> None:
        self.at = 0

    def get_obs(self) -> dict:
        last = int(self.at == len(LOG["sent"]))
        return {
            "rgb_obs": {name: LOG[name][last] for name in ("rgb_static", "rgb_gripper")},
            "robot_obs": LOG["robot"][self.at],
        }

    def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> dict:
        np.testing.assert_array_equal(robot_obs, LOG["robot_start"])
        np.testing.assert_array_equal(scene_obs, LOG["scene_start"])
        self.at = 0
        return self.get_obs()

    def get_info(self) -> int:
        return self.at

    def step(self, action: np.ndarray) -> tuple[dict, int, bool, int]:
        np.testing.assert_allclose(action, LOG["sent"][self.at], atol=1e-6)
        self.at += 1
        return self.get_obs(), 0, False, self.at

    def get_task_info_for_set(self, before: int, now: int, tasks: set[str]) -> set[str]:
        # A task counts from where it began: the start, or where the one before was done.
        begins = (0, *(np.flatnonzero(LOG["done"]) + 1))
        assert before == max(begin for begin in begins if begin < now)
        assert now == self.at
        return {str(LOG["done"][now - 1])} & tasks

    def close(self) -> None:
        pass


@pytest.fixture
def env(tmp_path, monkeypatch) -> CalvinEnv:
    hydra, omegaconf, simulator = ModuleType("hydra"), ModuleType("omegaconf"), Recorded()
    ready = SimpleNamespace(is_initialized=lambda: True)
    hydra.core = SimpleNamespace(
        global_hydra=SimpleNamespace(GlobalHydra=SimpleNamespace(instance=lambda: ready))
    )
    hydra.utils = SimpleNamespace(instantiate=lambda node, **_: simulator)
    omegaconf.OmegaConf = SimpleNamespace(load=lambda path: SimpleNamespace(env="the simulator"))
    monkeypatch.setitem(sys.modules, "hydra", hydra)
    monkeypatch.setitem(sys.modules, "omegaconf", omegaconf)
    chain = {"robot_obs": list(LOG["robot_start"]), "scene_obs": list(LOG["scene_start"]), "tasks": TASKS}
    for name, text in (
        ("validation/.hydra/merged_config.yaml", ""),
        ("calvin_models/conf/callbacks/rollout/tasks/new_playtable_tasks.yaml", ""),
        ("calvin_models/conf/annotations/new_playtable_validation.yaml", SENTENCES),
        ("chains.json", json.dumps([chain])),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return CalvinEnv(
        CalvinConfig(
            dataset=str(tmp_path), repository=str(tmp_path), chains=str(tmp_path / "chains.json"), egl=False
        )
    )


def test_the_client_does_the_recorded_chain(env: CalvinEnv) -> None:
    """From wishes to the commands that were sent, from what was seen to states, sentences and success."""
    seen = env.reset(0)
    states, said, results = [seen.state], [seen.instruction], []
    for wish in LOG["wishes"]:
        results.append(env.step(wish))
        states.append(results[-1].observation.state)
        said.append(results[-1].observation.instruction)
    np.testing.assert_array_equal(states, LOG["robot"].astype(np.float32))
    assert said == list(LOG["said"])
    first, last = np.flatnonzero(LOG["done"])
    assert said[first] != said[first + 1] == "grasp and lift the pink block"
    assert last == len(results) - 1
    assert [len(result.achieved) for result in results] == [0] * first + [1] * (last - first) + [2]
    assert results[-1].achieved == {"1_turn_on_led", "2_lift_pink_block_table"}
    assert [result.success for result in results] == [False] * last + [True]
    assert [result.terminated for result in results] == [False] * last + [True]
    assert results[first].score == 0.5
    np.testing.assert_array_equal(results[-1].observation.images["static"], LOG["rgb_static"][1])
    np.testing.assert_array_equal(results[-1].observation.images["gripper"], LOG["rgb_gripper"][1])


def test_the_recorded_pictures_have_the_benchmarks_sizes() -> None:
    assert json.loads(str(LOG["seen"])) == {
        "rgb_static": ["uint8", 200, 200, 3],
        "rgb_gripper": ["uint8", 84, 84, 3],
    }


def test_what_is_wished_is_what_is_seen_to_happen() -> None:
    """A change of 1 is 2 cm, or 0.05 rad of an Euler angle; above 0 the gripper opens, to 8 cm."""
    moved, wished = np.diff(LOG["robot"][:, :3], axis=0), np.clip(LOG["wishes"][:, :3], -1, 1)
    for axis in range(3):
        assert np.corrcoef(moved[:, axis], wished[:, axis])[0, 1] > 0.7
    full = np.abs(wished[1:, 0]) == 1
    full &= np.abs(wished[:-1, 0]) == 1
    np.testing.assert_allclose(np.abs(moved[1:, 0][full]).max(), 0.02, atol=0.003)
    shut = LOG["wishes"][:, 6] < 0
    assert LOG["robot"][5, 6] < 0.005  # shut on nothing
    assert LOG["robot"][1:, 6][~shut].max() > 0.075
    assert 0.03 < LOG["robot"][-1, 6] < 0.06  # shut on the block
    turned = LOG["turns"][:, 3:6] - LOG["robot"][0, 3:6]
    turned = (turned + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(turned, 4 * 0.05 * np.eye(3), atol=0.02)
