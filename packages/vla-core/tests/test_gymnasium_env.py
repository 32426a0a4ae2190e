"""Registered gymnasium environments behind the protocol of this project."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from vla_core.config import build_config
from vla_core.errors import ConfigError
from vla_core.registry import load

pytest.importorskip("gymnasium", reason="needs the extra vla-core[gymnasium]")

from vla_core.envs.gymnasium_env import read_repack

SIMULATOR = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

class Line(gymnasium.Env):
    # A point on a line that must reach 0.8.
    metadata = {"render_modes": ["rgb_array"]}
    pixels = Dict({"top": Box(0, 255, (8, 12, 3), np.uint8)})
    observation_space = Dict({"where": Box(-1, 5, (3,), np.float64), "pixels": pixels})
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode=None, gain=1.0):
        self.render_mode, self.gain = render_mode, gain

    def _see(self):
        return {
            "where": np.array([self.x, -self.x, 5.0]),
            "pixels": {"top": np.full((8, 12, 3), round(100 + 100 * self.x), np.uint8)},
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform(-0.5, 0.5))
        return self._see(), {}

    def step(self, action):
        assert action.dtype == np.float32
        self.x = float(np.clip(self.x + 0.1 * self.gain * action[0], -1, 1))
        done = self.x > 0.8
        return self._see(), self.x, done, False, {"is_success": done}

    def render(self):
        return np.full((6, 6, 3), 7, np.uint8)

gymnasium.register("tests/Line-v0", Line, max_episode_steps=40)
"""
REPACK = {
    "imports": ["line_simulator"],
    "cameras": {"top": "pixels.top", "page": "render"},
    "state": [
        {"name": "position", "key": "where", "dim": 2, "unit": "m"},
        {"name": "height", "key": "where", "dim": 1, "unit": "m"},
    ],
    "action": [{"name": "velocity", "dim": 1, "unit": "m/s", "representation": "delta"}],
    "control_hz": 10,
    "success": "is_success",
    "instruction": "go right",
    "embodiment": "line",
}


@pytest.fixture(autouse=True)
def simulator(tmp_path, monkeypatch):
    (tmp_path / "line_simulator.py").write_text(SIMULATOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("line_simulator", None)


def make(tmp_path: Path, repack=REPACK, **options):
    path = tmp_path / "line.yaml"
    path.write_text(yaml.safe_dump(repack, sort_keys=False))
    cls = load("vla.envs", "gymnasium")
    return cls(build_config(cls.Config, {"id": "tests/Line-v0", "repack": str(path), **options}, "env"))


def test_a_simulator_is_found_beside_its_repack_file(tmp_path, monkeypatch):
    """A program that is installed has no working directory among the places that it imports from."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(tmp_path)])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("line_simulator")
    assert make(tmp_path).reset(0).instruction == "go right"


def test_observations_and_specs_are_what_the_file_says(tmp_path):
    env = make(tmp_path, task="right")
    assert [(c.name, c.height, c.width) for c in env.observation_spec.cameras] == [
        ("top", 8, 12),
        ("page", 6, 6),
    ]
    assert env.observation_spec.state_slices() == {"position": slice(0, 2), "height": slice(2, 3)}
    assert (env.action_spec.dim, env.action_spec.control_hz, env.max_steps) == (1, 10.0, 40)
    first, again, other = env.reset(3), env.reset(3), env.reset(4)
    assert np.array_equal(first.state, again.state)
    assert not np.array_equal(first.state, other.state)
    assert (first.instruction, first.embodiment) == ("go right", "line")
    assert first.state[2] == 5.0
    assert first.state[1] == -first.state[0]
    assert first.images["top"][0, 0, 0] == pytest.approx(100 + 100 * first.state[0], abs=1)
    assert (first.images["page"] == 7).all()


def test_an_episode_ends_with_success_and_actions_stay_in_bounds(tmp_path):
    env = make(tmp_path, task="right")
    start = env.reset(0).state[0]
    moved = env.step(np.array([50.0], np.float32))
    assert moved.observation.state[0] == pytest.approx(start + 0.1, abs=1e-6)
    while not moved.terminated:
        moved = env.step(np.array([1.0], np.float32))
    assert (moved.success, moved.achieved) == (True, {"right"})


def test_bounds_that_are_not_the_real_ones_are_left_aside(tmp_path):
    env = make(tmp_path, repack={**REPACK, "clip": False})
    start = env.reset(0).state[0]
    assert env.step(np.array([5.0], np.float32)).observation.state[0] == pytest.approx(start + 0.5, abs=1e-6)


def test_an_episode_is_truncated_and_misuse_is_refused(tmp_path):
    env = make(tmp_path, max_steps=2, repack={**REPACK, "kwargs": {"gain": 0.0}})
    with pytest.raises(ValueError, match="call reset"):
        env.step(np.zeros(1, np.float32))
    env.reset(0)
    assert not env.step(np.zeros(1, np.float32)).truncated
    assert env.step(np.zeros(1, np.float32)).truncated
    for action in (np.zeros(2, np.float32), np.array([np.nan], np.float32)):
        with pytest.raises(ValueError, match="1 finite"):
            env.step(action)


def test_a_reward_can_say_what_success_is(tmp_path):
    env = make(tmp_path, repack={**REPACK, "success": None, "success_reward": 0.3})
    env.reset(0)
    while not (result := env.step(np.array([1.0], np.float32))).success:
        assert result.reward < 0.3
    assert result.reward >= 0.3


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({}, {"id": "tests/Lime-v0"}, "env.id: 'tests/Lime-v0'"),
        ({"imports": ["no_such_module"]}, {}, "no_such_module"),
        ({"kwargs": {"gian": 2}}, {}, "gian"),
        (
            {"cameras": {"top": "pixels.left"}},
            {},
            r"no 'pixels.left' in the obs.*has \['top'\]",
        ),
        ({"cameras": {"top": "where"}}, {}, r"cameras.top: 'where' is float64 \(3,\)"),
        ({"cameras": {}}, {}, "at least one camera"),
        ({"action": [{"name": "v", "dim": 2, "unit": "m"}]}, {}, "its groups have 2 dims"),
        ({"action": [{"name": "v", "dmi": 1, "unit": "m"}]}, {}, "did you mean 'dim'"),
        ({"state": [{"name": "a", "key": "where", "dim": 4, "unit": "m"}]}, {}, "'where' has 3 dims"),
        ({"success": None}, {}, "what success is"),
        ({"sucess": "x"}, {}, "did you mean 'success'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, change, options, says):
    with pytest.raises(ConfigError, match=says) as error:
        make(tmp_path, repack={**REPACK, **change}, **options)
    assert "\n" not in str(error.value)


def test_a_missing_repack_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"env.repack: .*nowhere.yaml"):
        read_repack(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"cameras: \xff")
    with pytest.raises(ConfigError, match=r"env.repack: .*bytes.yaml: .*utf-8"):
        read_repack(str(tmp_path / "bytes.yaml"))


def test_a_missing_success_entry_is_said_at_the_first_step(tmp_path):
    env = make(tmp_path, repack={**REPACK, "success": "solved"})
    env.reset(0)
    with pytest.raises(ConfigError, match=r"no 'solved' in info, which has \['is_success'\]"):
        env.step(np.zeros(1, np.float32))


@pytest.mark.slow
def test_an_environment_of_gymnasium_itself(tmp_path):
    pytest.importorskip("mujoco")
    os.environ.setdefault("MUJOCO_GL", "egl")
    repack = {
        "cameras": {"above": "render"},
        "state": [{"name": "everything", "key": ".", "dim": 10, "unit": "1"}],
        "action": [{"name": "torque", "dim": 2, "unit": "N m"}],
        "control_hz": 50,
        "success_reward": -0.01,
        "kwargs": {"width": 64, "height": 48},
    }
    env = make(tmp_path, repack=repack, id="Reacher-v5", task="reach")
    assert env.max_steps == 50
    first = env.reset(1)
    assert first.images["above"].shape == (48, 64, 3)
    assert first.images["above"].std() > 1
    assert first.instruction == "reach"
    env.step(np.zeros(2, np.float32))
    env.close()
