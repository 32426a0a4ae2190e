"""Where the project's code ends and a simulator's begins: what it raises becomes one line.

Every program that runs a simulator makes it by :func:`guarded`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vla_core.envs.protocol import ExpertEnv, StepResult
from vla_core.errors import UserError
from vla_core.types import Observation, with_own_arrays


class SimulatorError(UserError):
    """A simulator raised something of its own: one line; ``trace`` is the traceback.

    ``seed`` is that of the episode, None where there was none yet.
    """

    def __init__(self, line: str, trace: str, seed: int | None) -> None:
        super().__init__(line, trace, seed)  # all of them, so that it passes between processes
        self.line, self.trace, self.seed = line, trace, seed

    def __str__(self) -> str:
        return self.line

    def kept(self, path: Path) -> SimulatorError:
        """The same error, which says that its traceback is in ``path``, where this writes it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.trace, "utf-8")
        return SimulatorError(f"{self.line} (traceback: {path})", self.trace, self.seed)


def guarded(env_class: Any, config: Any, name: str, task: str) -> ExpertEnv:
    """An environment; what it raises that is no :class:`UserError` becomes a SimulatorError.

    Args:
        env_class: the simulator; only one that has an expert can be asked for an ``expert_action``.
        config: of its ``Config``.
        name: of the simulator, for errors.
        task: likewise.

    Raises:
        SimulatorError: it cannot be made.
    """
    return cast(ExpertEnv, _Guarded(env_class, config, name, task))


class _Guarded:
    def __init__(self, env_class: Any, config: Any, name: str, task: str) -> None:
        self._who = f"simulator '{name}', task '{task}'"
        self._seed: int | None = None
        self._failed = False
        with self._boundary("making it"):
            self._env = env_class(config)
            self.observation_spec = self._env.observation_spec
            self.action_spec = self._env.action_spec
            self.max_steps: int = self._env.max_steps

    def reset(self, seed: int) -> Observation:
        self._seed = seed
        with self._boundary("reset"):
            # Simulators may give out their own memory, which the next step writes to.
            return with_own_arrays(_of(Observation, self._env.reset(seed)))

    def step(self, action: NDArray[np.float32]) -> StepResult:
        with self._boundary("step"):
            result: StepResult = _of(StepResult, self._env.step(action))
            return replace(result, observation=with_own_arrays(result.observation))

    def expert_action(self) -> NDArray[np.float32]:
        with self._boundary("expert_action"):
            action: NDArray[np.float32] = self._env.expert_action()
            return action.copy()

    def close(self) -> None:
        with self._boundary("close"):
            self._env.close()

    @contextmanager
    def _boundary(self, call: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        # A simulator is foreign code, often the user's own or a C library's: what it raises cannot be listed.
        except Exception as error:
            if self._failed:
                return  # closing what has failed; the first error is the one to report
            self._failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
            episode = "" if self._seed is None else f", seed {self._seed}"
            line = f"{self._who}{episode}: {call} raised {reason}"
            raise SimulatorError(line, traceback.format_exc(), self._seed) from error


def _of(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"it gives {type(value).__name__}, not {kind.__name__} (vla_core.envs)")
    return value
