"""A demonstration ends at success or the time limit, also in a simulator that never says terminated."""

from __future__ import annotations

import numpy as np
import pytest
from vla_core.envs import StepResult
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec
from vla_core.types import Observation
from vla_data import _demonstrate
from vla_data._demonstrate import DemonstrationJob, close_envs, demonstrate


class DotEnv:
    """As the example in docs/extending.md: a dot is pushed to the middle, ``terminated`` is always False."""

    class Config:
        pass

    max_steps = 60

    def __init__(self, limit: int | None = None, truncates: bool = True) -> None:
        self.observation_spec = ObservationSpec((CameraSpec("top", 8, 8),), (GroupSpec("position", 2, "m"),))
        self.action_spec = ActionSpec((GroupSpec("velocity", 2, "m/s"),), horizon=1, control_hz=10.0)
        self.max_steps, self.truncates = limit or 60, truncates

    def _observe(self) -> Observation:
        return Observation({"top": np.zeros((8, 8, 3), np.uint8)}, "push", self.position.astype(np.float32))

    def reset(self, seed: int) -> Observation:
        self.position, self.steps = np.random.default_rng(seed).uniform(-1, 1, 2), 0
        return self._observe()

    def step(self, action: np.ndarray) -> StepResult:
        self.position = np.clip(self.position + action / 10.0, -1, 1)
        self.steps += 1
        distance = float(np.linalg.norm(self.position))
        truncated = self.truncates and self.steps >= self.max_steps
        return StepResult(self._observe(), -distance, distance < 0.1, False, truncated)

    def expert_action(self) -> np.ndarray:
        return (-self.position).astype(np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def play(monkeypatch):
    def run(env: DotEnv, seed: int):
        monkeypatch.setattr(_demonstrate, "open_env", lambda name, options: env)
        return demonstrate(DemonstrationJob("dot", (), seed, 0.0))

    yield run
    close_envs()


@pytest.mark.parametrize("seed", range(4))
def test_it_stops_at_success(play, seed):
    shown = play(DotEnv(), seed)
    assert shown.success
    state, action = shown.columns["observation.state"], shown.columns["action"]
    assert len(action) < 60
    assert (np.linalg.norm(state, axis=1) >= 0.1).all(), "no frame idles at the goal"
    assert np.linalg.norm(state[-1] + action[-1] / 10) < 0.1, "the last action achieves it"


@pytest.mark.parametrize("truncates", [True, False])
def test_it_stops_at_the_time_limit(play, truncates):
    shown = play(DotEnv(limit=3, truncates=truncates), 0)
    assert not shown.success
    assert len(shown.columns["action"]) == 3
