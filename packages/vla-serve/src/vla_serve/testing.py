"""A small robot world for tests and examples: numpy only, deterministic in its seed.

``ToyEnv`` is a simulator with two tasks that share one scene, so that the instruction decides;
``ToyPolicy`` solves both from the images alone. Shapes: H = W image size, T action steps.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from vla_core.envs import StepResult
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.types import ActionChunk, Observation, PreviousChunk

from vla_serve.engine.policy import Row

_CONTROL_HZ = 10.0
_REACH_M = 0.8
_SENTENCES = {"left": ("go left", "move to the left side"), "right": ("go right", "move to the right side")}


@dataclass(frozen=True)
class ToyEnvConfig:
    """Options of :class:`ToyEnv`.

    Args:
        task: ``left`` or ``right``.
        image_size: H = W in pixels.
        max_steps: an episode is truncated after so many.
        fail_seed: raise at the first step of this episode.
        crash_seed: end the whole process at the first step of this episode.
    """

    task: str = "left"
    image_size: int = 32
    max_steps: int = 30
    fail_seed: int | None = None
    crash_seed: int | None = None


def _observation_spec(size: int) -> ObservationSpec:
    return ObservationSpec((CameraSpec("top", size, size),), (GroupSpec("height", 1, "m"),))


def _action_spec(horizon: int) -> ActionSpec:
    group = GroupSpec("velocity", 1, "m/s", representation="delta")
    return ActionSpec((group,), horizon, _CONTROL_HZ)


class ToyEnv:
    """A bright square on a line from -1 m to 1 m; a task is done beyond 0.8 m on its side."""

    Config: ClassVar[type] = ToyEnvConfig

    def __init__(self, config: ToyEnvConfig) -> None:
        self._config = config
        self.observation_spec = _observation_spec(config.image_size)
        self.action_spec = _action_spec(1)
        self.max_steps = config.max_steps
        self._seed, self._steps, self._position_m = 0, 0, 0.0

    @classmethod
    def tasks(cls) -> Sequence[str]:
        """Both tasks."""
        return tuple(_SENTENCES)

    def reset(self, seed: int) -> Observation:
        """Start within 0.5 m of the middle; the same place for both tasks."""
        self._seed, self._steps = seed, 0
        self._position_m = float(np.random.default_rng(seed).uniform(-0.5, 0.5))
        return self._observe()

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Move with ``action [1]`` m/s for a tenth of a second."""
        if action.shape != (1,) or not np.isfinite(action).all():
            raise ValueError(f"action must be one finite number, got {action}")
        if self._seed == self._config.fail_seed:
            raise RuntimeError(f"the toy was told to fail in episode {self._seed}")
        if self._seed == self._config.crash_seed:
            os._exit(13)
        self._position_m = float(np.clip(self._position_m + action[0] / _CONTROL_HZ, -1, 1))
        self._steps += 1
        achieved = {"left"} if self._position_m < -_REACH_M else set()
        achieved |= {"right"} if self._position_m > _REACH_M else set()
        success = self._config.task in achieved
        truncated = not success and self._steps >= self.max_steps
        return StepResult(self._observe(), float(success), success, success, truncated, frozenset(achieved))

    def close(self) -> None:
        """Nothing to free."""

    def _observe(self) -> Observation:
        size = self._config.image_size
        image = np.zeros((size, size, 3), np.uint8)
        column = int((self._position_m + 1) / 2 * (size - 1))
        image[:, max(0, column - 1) : column + 2] = 255
        sentences = _SENTENCES[self._config.task]
        return Observation({"top": image}, sentences[self._seed % 2], np.zeros(1, np.float32))


class ToyPolicy:
    """Goes to the side that the instruction names, at 1 m/s, from wherever the image shows the square.

    Args:
        horizon: T.
        image_size: of the camera.
        stuck_left: stand still where the image shows the square left of the middle.
    """

    framework = "Toy"

    def __init__(self, horizon: int = 4, image_size: int = 32, stuck_left: bool = False) -> None:
        spec = RobotSpec(_observation_spec(image_size), _action_spec(horizon), embodiment="toy")
        self.specs: Mapping[str, RobotSpec] = {"toy": spec}
        self._stuck_left = stuck_left

    def longest_delay(self, embodiment: str) -> int:
        """It can keep any start of an earlier chunk."""
        return self.specs[embodiment].action.horizon - 1

    def prepare(self, rows: Sequence[Row]) -> FakeRows:
        """See :class:`vla_serve.server.Policy`."""
        return FakeRows(tuple(rows))

    def predict(self, prepared: FakeRows, steps: int | None = None) -> NDArray[np.float32]:
        """Velocities ``[B, T, 1]``."""
        horizon = self.specs["toy"].action.horizon
        speeds_B = [self._speed(row.observation) for row in prepared.rows]
        return np.tile(np.array(speeds_B, np.float32)[:, None, None], (1, horizon, 1))

    def finish(self, actions: NDArray[np.float32], rows: Sequence[Row]) -> list[ActionChunk]:
        """A continued chunk keeps its start."""
        chunks = []
        for actions_T1, row in zip(actions.copy(), rows, strict=True):
            kept = row.previous
            if kept is not None:
                actions_T1[: kept.n_frozen] = kept.actions[: kept.n_frozen]
            chunks.append(ActionChunk(actions_T1, self.specs["toy"].action))
        return chunks

    def act(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int],
        steps: int | None = None,
        previous: Sequence[PreviousChunk | None] | None = None,
    ) -> list[ActionChunk]:
        """All three."""
        left = previous or [None] * len(observations)
        rows = [Row(o, s, previous=p, steps=steps) for o, s, p in zip(observations, seeds, left, strict=True)]
        return self.finish(self.predict(self.prepare(rows), steps), rows)

    def _speed(self, observation: Observation) -> float:
        columns = np.flatnonzero(observation.images["top"].any(axis=(0, 2)))
        left = columns.size > 0 and columns.mean() < observation.images["top"].shape[1] / 2
        if left and self._stuck_left:
            return 0.0
        return -1.0 if "left" in observation.instruction else 1.0


@dataclass(frozen=True)
class FakeRows:
    """What the fakes prepare: the rows themselves."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def join(parts: Sequence[FakeRows]) -> FakeRows:
        """All rows, in order."""
        return FakeRows(tuple(row for part in parts for row in part.rows))


class TimedPolicy:
    """Takes the time that it is told to; answers ``seed + mean of the state + t`` in every dim.

    Args:
        spec: of its only embodiment.
        run_s, row_s: seconds of a run, and of each of its rows.
    """

    framework = "Timed"

    def __init__(self, spec: RobotSpec, run_s: float = 0.0, row_s: float = 0.0) -> None:
        self.specs: Mapping[str, RobotSpec] = {spec.embodiment: spec}
        self.run_s, self.row_s = run_s, row_s
        self.runs: list[tuple[int, float]] = []
        """Rows and seconds of each run."""

    def prepare(self, rows: Sequence[Row]) -> FakeRows:
        """See :class:`vla_serve.server.Policy`."""
        return FakeRows(tuple(rows))

    def predict(self, prepared: FakeRows, steps: int | None = None) -> NDArray[np.float32]:
        """Actions ``[B, T, A]``, after a while."""
        start = time.monotonic()
        time.sleep(self.run_s + self.row_s * len(prepared))
        self.runs.append((len(prepared), time.monotonic() - start))
        spec = next(iter(self.specs.values())).action
        values_B = [row.seed % 1000 + _mean(row.observation.state) for row in prepared.rows]
        values_BT = np.array(values_B)[:, None] + np.arange(spec.horizon)
        return np.repeat(values_BT[..., None], spec.dim, 2).astype(np.float32)

    def finish(self, actions: NDArray[np.float32], rows: Sequence[Row]) -> list[ActionChunk]:
        """The chunks."""
        return [
            ActionChunk(actions_TA, self.specs[row.observation.embodiment].action)
            for actions_TA, row in zip(actions, rows, strict=True)
        ]


class GatedPolicy(TimedPolicy):
    """Runs while its gate is open."""

    def __init__(self, spec: RobotSpec, run_s: float = 0.0, row_s: float = 0.0) -> None:
        super().__init__(spec, run_s, row_s)
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, prepared: FakeRows, steps: int | None = None) -> NDArray[np.float32]:
        """See :class:`TimedPolicy`.

        Raises:
            TimeoutError: the gate stayed closed for 20 seconds.
        """
        if not self.gate.wait(20):
            raise TimeoutError("the gate stayed closed")
        return super().predict(prepared, steps)


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition that another thread or process brings about.

    Raises:
        AssertionError: it did not hold within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def _mean(state: NDArray[np.float32] | None) -> float:
    return 0.0 if state is None else float(state.mean())
