"""Recorded actions in the place of a policy: does the simulator repeat what a data set holds?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vla_core.envs.recorded import Recorded, RecordedEpisode, read
from vla_core.errors import UserError, suggest
from vla_core.types import Float, Observation

from vla_serve.clients.control_loop import LoopStats

NAME = "replay"

_POLICY_OPTIONS = (
    *("execute_steps", "delay_steps", "instruction", "instruction_from", "hide"),
    *("temporal_ensemble_coeff", "adaptive_ensemble_alpha"),
)


class ReplayLoop:
    """Answers with the recorded action of each step; has what an episode needs of a ``ControlLoop``.

    Call :meth:`begin` before each episode. ``deviation`` is the greatest difference so far, over steps and
    state dims, between the observed state and the recorded one (None for a robot without a state).
    """

    execute_steps = 1

    def __init__(self, episodes: Mapping[int, RecordedEpisode]) -> None:
        self._episodes, self.stats = episodes, LoopStats()
        self._now: RecordedEpisode | None = None
        self._step, self.deviation = 0, None  # type: int, float | None

    def begin(self, seed: int) -> int:
        """Play the episode that started from ``seed``; returns its number of actions."""
        self._now = self._episodes[seed]
        return len(self._now.actions)

    def reset(self) -> None:
        """Back to the first action."""
        self._step, self.deviation = 0, None

    def act(self, observation: Observation, seed: int) -> Float:
        """The recorded action ``[A]``; ``seed`` does not matter.

        Raises:
            UserError: the robot's state has other dims than the recorded one.
        """
        assert self._now is not None, "begin() comes first"
        recorded, state = self._now.states[self._step], observation.state
        if state is not None and recorded.size:
            if state.shape != recorded.shape:
                raise UserError(
                    f"replay: the data set's state has {recorded.size} dims, the simulator's {state.size}; "
                    "leave out the --env.KEY that changes it"
                )
            self.deviation = max(self.deviation or 0.0, float(np.abs(state - recorded).max()))
        action: Float = self._now.actions[self._step]
        self._step += 1
        return action


def chosen(dataset: str, tasks: Sequence[str], episodes: int | None) -> tuple[Recorded, dict[str, list[int]]]:
    """What is replayed: the data set's record, and task -> seeds of its first ``episodes`` (None: all).

    Args:
        tasks: those to replay; empty: all that were recorded.

    Raises:
        UserError: nothing stored to start from, or a task that was not recorded.
    """
    recorded = read(Path(dataset))
    seeds: dict[str, list[int]] = {}
    for episode in recorded.episodes:
        seeds.setdefault(episode.task, []).append(episode.seed)
    for task in tasks:
        if task not in seeds:
            raise UserError(f"--task: '{task}' is not in {dataset}{suggest(task, seeds)}")
    return recorded, {task: seeds[task][:episodes] for task in tasks or seeds}


def check(settings: Any) -> None:
    """Refuse options that only a policy can follow.

    Raises:
        UserError: which.
    """
    if settings.address or settings.policy:
        raise UserError("replay: recorded actions need no policy; leave --address and --policy out")
    for name in _POLICY_OPTIONS:
        if getattr(settings, name) is not None:
            raise UserError(f"{name}: recorded actions follow nothing; leave it out")
    for name in ("rtc", "hold_steps"):
        if getattr(settings, name):
            raise UserError(f"{name}: recorded actions wait for no answer; leave it out")


def described() -> dict[str, Any]:
    """The ``policy`` of results.json."""
    return {
        "server_version": "",
        "policies": [{"name": NAME, "framework": "recorded actions"}],
        "weights_digest": "",
        "statistics_digest": "",
    }


def summary(episodes: Sequence[Mapping[str, Any]], recorded: Recorded) -> str:
    """What came of it in one or two lines; ``episodes`` as in results.json."""
    was = {(e.task, e.seed): e.success for e in recorded.episodes}
    ended = [e for e in episodes if e["success"] is not None]
    same = sum(e["success"] == was[e["task"], e["seed"]] for e in ended)
    text = f"{same} of {len(ended)} episodes ended as recorded"
    deviations = [e["state_deviation"] for e in ended if e["state_deviation"] is not None]
    if deviations:
        middle = np.median(deviations)
        text += f"; state off the recorded one by at most {max(deviations):.3g} (median episode {middle:.3g})"
    if same < len(ended):
        text += (
            "\nnot the simulator that recorded: compare versions, --env.KEY options and control mode first"
        )
    return text
