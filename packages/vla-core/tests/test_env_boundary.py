"""What a simulator raises is one line that names simulator, task, episode and call."""

from __future__ import annotations

import pickle
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vla_core.envs import SimulatorError, StepResult, guarded
from vla_core.errors import UserError
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec
from vla_core.types import Observation

ZERO = ZeroDivisionError("division by zero")


@dataclass(frozen=True)
class Config:
    at: str = ""
    error: Any = ZERO


class World:
    """Raises ``error`` in the call that the config names."""

    observation_spec = ObservationSpec((CameraSpec("top", 8, 8),), ())
    action_spec = ActionSpec((GroupSpec("move", 1, "m", representation="delta"),), 1, 10.0)
    max_steps = 5

    def __init__(self, config: Config) -> None:
        self.config, self.closed = config, False
        self.fail("init")

    def fail(self, call: str) -> None:
        if call == self.config.at:
            raise self.config.error

    def reset(self, seed: int) -> Any:
        self.fail("reset")
        return Observation({"top": np.full((8, 8, 3), seed, np.uint8)}, "go")

    def step(self, action: Any) -> Any:
        self.fail("step")
        if self.config.at == "gym":
            return self.reset(0), 0.0, False, False, {}
        return StepResult(self.reset(1), 0.0, success=True, terminated=False, truncated=False)

    def expert_action(self) -> Any:
        self.fail("expert_action")
        return np.ones(1, np.float32)

    def close(self) -> None:
        self.fail("close")


def run(config: Config) -> None:
    env = guarded(World, config, "world", "left")
    try:
        assert env.reset(7).images["top"][0, 0, 0] == 7
        assert env.step(env.expert_action()).success
    finally:
        env.close()


def test_what_raises_nothing_passes_through() -> None:
    env = guarded(World, Config(), "world", "left")
    assert (env.observation_spec, env.action_spec, env.max_steps) == (
        World.observation_spec,
        World.action_spec,
        5,
    )
    run(Config())


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("init", "simulator 'world', task 'left': making it raised"),
        ("reset", "simulator 'world', task 'left', seed 7: reset raised"),
        ("step", "simulator 'world', task 'left', seed 7: step raised"),
        ("expert_action", "simulator 'world', task 'left', seed 7: expert_action raised"),
        ("close", "simulator 'world', task 'left', seed 7: close raised"),
    ],
)
def test_each_call(at: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SimulatorError) as caught:
        run(Config(at))
    error = pickle.loads(pickle.dumps(caught.value))  # as it comes from another process
    assert str(error) == f"{said} ZeroDivisionError: division by zero"
    assert error.seed == (None if at == "init" else 7)
    kept = error.kept(tmp_path / "errors" / "left_7.txt")
    assert str(kept) == f"{error} (traceback: {tmp_path / 'errors' / 'left_7.txt'})"
    assert "in fail" in (tmp_path / "errors" / "left_7.txt").read_text()


def test_many_lines_become_one_and_none_leaves_the_type() -> None:
    with pytest.raises(SimulatorError, match=r"step raised OSError: no EGL device$") as caught:
        run(Config("step", OSError("no EGL\n  device\n")))
    assert "\n" not in str(caught.value)
    with pytest.raises(SimulatorError, match=r"step raised AssertionError$"):
        run(Config("step", AssertionError()))


def test_a_users_mistake_and_an_interrupt_stay_what_they_are() -> None:
    with pytest.raises(UserError) as caught:
        run(Config("init", UserError("env.size: too small")))
    assert str(caught.value) == "env.size: too small"
    assert not isinstance(caught.value, SimulatorError)
    with pytest.raises(KeyboardInterrupt):
        run(Config("step", KeyboardInterrupt()))


def test_an_answer_of_another_kind_is_said_where_it_is_given() -> None:
    with pytest.raises(SimulatorError, match="step raised TypeError: it gives tuple, not StepResult"):
        run(Config("gym"))


def test_closing_what_has_failed_does_not_hide_it() -> None:
    class Worse(World):
        def close(self) -> None:
            raise RuntimeError("already gone")

    env = guarded(Worse, Config("step"), "world", "left")
    env.reset(7)
    with pytest.raises(SimulatorError, match="step raised ZeroDivisionError"), closing(env):
        env.step(np.ones(1, np.float32))


class Sharing(World):
    """Gives out its own memory, which each step writes to."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.image, self.command = np.zeros((8, 8, 3), np.uint8), np.zeros(1, np.float32)

    def reset(self, seed: int) -> Any:
        self.image[:] = seed
        return Observation({"top": self.image}, "go")

    def step(self, action: Any) -> Any:
        self.image += 1
        return StepResult(Observation({"top": self.image}, "go"), 0.0, False, False, False)

    def expert_action(self) -> Any:
        self.command += 1
        return self.command


def test_what_a_simulator_showed_stays_what_it_was() -> None:
    with closing(guarded(Sharing, Config(), "world", "walk")) as env:
        seen = [env.reset(7)]
        commands = []
        for _ in range(3):
            commands.append(env.expert_action())
            seen.append(env.step(commands[-1]).observation)
    assert [int(one.images["top"][0, 0, 0]) for one in seen] == [7, 8, 9, 10]
    assert [float(command[0]) for command in commands] == [1, 2, 3]
