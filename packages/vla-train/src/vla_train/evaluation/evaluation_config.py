"""``trainer.evaluation``: the closed loop after a training, and during it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vla_core.episodes import EpisodeSettings
from vla_core.ranges import Natural, Positive, check_ranges

from vla_train.lost_parts import SIMULATOR


@dataclass(frozen=True)
class EvaluationConfig(EpisodeSettings):
    """Closed-loop evaluation of a training, by ``vla-serve`` and ``vla-rollout`` as processes.

    Args:
        env: name of the simulator (entry point ``vla.envs``).
        env_options: its Config, without the task.
        embodiment: which robot of the policy it is; null: its only one.
        tasks: tasks to run; empty: no evaluation.
        timeout_minutes: give up after so long.
        every: also every so many steps, on the training's own device: ``rollout/success`` in the metrics,
            ``rollouts/steps_N`` in the run's folder; ``trainer.keep_best: rollout/failure`` keeps the best.
            Training waits meanwhile. 0: at the end alone.
    """

    env: str = SIMULATOR
    env_options: dict[str, Any] = field(default_factory=dict)
    embodiment: str | None = None
    tasks: tuple[str, ...] = ()
    timeout_minutes: Positive = 60.0
    every: Natural = 0

    def __post_init__(self) -> None:
        check_ranges(self, "trainer.evaluation.")
        self.check_pace("trainer.evaluation.", "trainer.evaluation.delay_steps")
