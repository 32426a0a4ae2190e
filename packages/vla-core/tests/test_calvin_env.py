"""CALVIN's client against a stand-in for its simulator.

Observations and calls are those of mees/calvin_env at commit 797142c (``play_table_env.py``, ``robot.py``)
and of mees/calvin at fa03f01 (``evaluate_policy.py``). The first observation is one that the simulator itself
gave, from the start that the benchmark's first chains share.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from vla_core.config import build_config
from vla_core.envs.calvin import CalvinEnv
from vla_core.errors import ConfigError

RECORDED = [
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963, -1.21779124,
    1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
]  # fmt: skip
CHAINS = [
    {
        "robot_obs": RECORDED,
        "scene_obs": [0.0] * 24,
        "tasks": ["open_drawer", "turn_on_led", "push_into_drawer"],
    },
    {"robot_obs": RECORDED, "scene_obs": [1.0] * 24, "tasks": ["turn_on_led", "open_drawer", "open_drawer"]},
]
SENTENCES = """
open_drawer: ["pull the handle to open the drawer"]
turn_on_led: ["press the button to turn on the led light"]
push_into_drawer: ["slide the object that it falls into the drawer"]
"""


class Simulator:
    """Counts its steps; its ``info`` is that count."""

    def __init__(self) -> None:
        self.count, self.actions, self.cid = 0, [], 0
        self.robot = SimpleNamespace(gripper_action=-1)

    def get_obs(self) -> dict:
        images = {
            "rgb_static": np.full((200, 200, 3), 9, np.uint8),
            "rgb_gripper": np.zeros((84, 84, 3), np.uint8),
        }
        return {
            "rgb_obs": images,
            "depth_obs": {},
            "robot_obs": np.array(RECORDED),
            "scene_obs": np.zeros(24),
        }

    def reset(self, robot_obs=None, scene_obs=None) -> dict:
        assert len(robot_obs) == 15
        self.start = scene_obs[0]
        return self.get_obs()

    def get_info(self) -> dict:
        return {"robot_info": {}, "scene_info": self.count}

    def step(self, action) -> tuple[dict, int, bool, dict]:
        # The simulator asserts the gripper's command, and scales the rest as it is.
        assert action[6] in (-1, 1)
        assert np.abs(action[:6]).max() <= 1
        self.count += 1
        self.actions.append(action)
        return self.get_obs(), 0, False, self.get_info()

    def close(self) -> None:
        pass


class Oracle:
    """Every task takes two steps from where it began."""

    def get_task_info_for_set(self, start: dict, now: dict, tasks: set) -> set:
        return tasks if now["scene_info"] - start["scene_info"] >= 2 else set()


@pytest.fixture
def make(tmp_path, monkeypatch):
    hydra, omegaconf = ModuleType("hydra"), ModuleType("omegaconf")
    hydra.core = SimpleNamespace(
        global_hydra=SimpleNamespace(
            GlobalHydra=SimpleNamespace(instance=lambda: SimpleNamespace(is_initialized=lambda: True))
        )
    )
    hydra.utils = SimpleNamespace(instantiate=lambda node, **options: Simulator() if options else Oracle())
    omegaconf.OmegaConf = SimpleNamespace(load=lambda path: SimpleNamespace(env="the simulator"))
    for folder, name, text in (
        ("data", "validation/.hydra/merged_config.yaml", ""),
        ("calvin", "calvin_models/conf/callbacks/rollout/tasks/new_playtable_tasks.yaml", ""),
        ("calvin", "calvin_models/conf/annotations/new_playtable_validation.yaml", SENTENCES),
        (".", "chains.json", json.dumps(CHAINS)),
    ):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def build(**options):
        values = {
            "dataset": str(tmp_path / "data"),
            "repository": str(tmp_path / "calvin"),
            "chains": str(tmp_path / "chains.json"),
            **options,
        }
        config = build_config(CalvinEnv.Config, values, "env")
        monkeypatch.setitem(sys.modules, "hydra", hydra)
        monkeypatch.setitem(sys.modules, "omegaconf", omegaconf)
        try:
            return CalvinEnv(config)
        finally:
            monkeypatch.undo()

    return build


def test_a_chain_says_the_next_sentence_when_a_task_is_done(make) -> None:
    env = make()
    assert env.reset(0).instruction == "pull the handle to open the drawer"
    assert env._env.robot.gripper_action == 1, "the start's, not what the chain before ended with"
    results = [env.step(np.zeros(7, np.float32)) for _ in range(6)]
    said = [r.observation.instruction.split()[0] for r in results]
    assert said == ["pull", "press", "press", "slide", "slide", "slide"]
    assert [len(r.achieved) for r in results] == [0, 1, 1, 2, 2, 3]
    assert results[-1].achieved == {"1_open_drawer", "2_turn_on_led", "3_push_into_drawer"}
    assert [r.success for r in results] == [False] * 5 + [True]
    assert [r.score for r in results] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
    assert results[-1].terminated
    with pytest.raises(ValueError, match="reset"):
        env.step(np.zeros(7, np.float32))


def test_the_same_task_twice_counts_twice(make) -> None:
    env = make()
    assert env.reset(3).instruction.startswith("press")
    assert env._env.start == 1.0  # chains are counted round
    results = [env.step(np.zeros(7, np.float32)) for _ in range(6)]
    assert len(results[-1].achieved) == 3


def test_a_task_that_takes_too_long_ends_the_chain(make, monkeypatch) -> None:
    env = make(steps=3)
    assert env.max_steps == 9
    env.reset(0)
    env._oracle = SimpleNamespace(get_task_info_for_set=lambda start, now, tasks: tasks & {"open_drawer"})
    results = [env.step(np.zeros(7, np.float32)) for _ in range(4)]
    assert [r.terminated for r in results] == [False, False, False, True]
    assert not results[-1].success
    assert results[-1].achieved == {"1_open_drawer"}  # a chain of length 1


def test_state_and_action_are_those_of_the_simulator(make) -> None:
    env = make()
    seen = env.reset(0)
    np.testing.assert_allclose(seen.state, RECORDED, rtol=1e-6)
    assert [(c.name, c.height, c.width) for c in env.observation_spec.cameras] == [
        ("static", 200, 200),
        ("gripper", 84, 84),
    ]
    for wish, gripper in ((0.3, 1.0), (0.0, -1.0), (-0.7, -1.0)):
        env.reset(0)
        env.step(np.array([0.5, -0.5, 3.0, 0.1, 0.2, -4.0, wish], np.float32))
        np.testing.assert_allclose(env._env.actions[-1], [0.5, -0.5, 1.0, 0.1, 0.2, -1.0, gripper], atol=1e-7)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dataset": ""}, "env.dataset: say where it is"),
        ({"repository": "/nowhere"}, "env.repository: say where it is"),
        ({"chains": "/nowhere/chains.json"}, "write_chains.py"),
    ],
)
def test_what_is_missing_is_said_in_one_line(make, options, complaint) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make(**options)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "nothing", '[{"tasks": []}]', '[{"robot_obs": [1], "scene_obs": [2], "tasks": ["a"]}]'],
)
def test_a_file_that_is_no_list_of_chains_is_refused(make, tmp_path, content) -> None:
    (tmp_path / "chains.json").write_text(content)
    with pytest.raises(ConfigError, match=r"env\.chains"):
        make()
