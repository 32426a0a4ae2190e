"""Success in the simulator while a policy still trains: a checkpoint served and rolled out now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from vla_core.errors import UserError

from vla_train.checkpointing.saving import ROLLOUT
from vla_train.config import EvaluationConfig
from vla_train.engine import Engine
from vla_train.evaluation.evaluate import evaluate
from vla_train.guards.exits import BrokenOff
from vla_train.guards.stopping import Stop

LOOK_S = 5.0
"""So often ranks that wait hear that the first is still at it, and the first of a signal that they got: what
they wait in has a time limit."""


def due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps (0: never) is done after ``step``."""
    return every > 0 and step % every == 0


class ClosedLoop:
    """Rolls a policy out every ``config.every`` steps.

    Args:
        config: what is rolled out.
        engine: the first rank serves and rolls out; the others wait.
        run_dir: ``rollouts/steps_N`` of it takes results, report and logs.
    """

    def __init__(self, config: EvaluationConfig, engine: Engine, run_dir: Path) -> None:
        self.config, self.engine, self.run_dir = config, engine, run_dir

    def due(self, step: int) -> bool:
        """Whether the policy is rolled out after ``step``."""
        return bool(self.config.tasks) and due(step, self.config.every)

    def __call__(
        self, step: int, checkpoint: Path, note: Callable[[str], None], stop: Stop
    ) -> dict[str, float]:
        """The metrics; none where a program failed, which does not end the training: ``note`` is told why.

        Args:
            step: of the training.
            checkpoint: of that step, written. Called by all ranks.
            note: says a line.
            stop: a signal breaks the rollout off.
        """
        out = self.run_dir / "rollouts" / f"steps_{step}"
        outcome: list[Any] = []
        with ThreadPoolExecutor(1, "rollout") as pool:
            over = threading.Event()
            ending = lambda: over.is_set() or stop.signalled  # noqa: E731
            job = pool.submit(self._evaluate, checkpoint, out, ending) if self.engine.is_main else None
            try:
                while not outcome:
                    outcome = self.engine.agree(lambda: _news(job))
                    if stop.now():
                        over.set()
            finally:
                # The pool waits for its job, whatever ended the wait for it.
                over.set()
        results, error = outcome
        if error is not None:
            note(f"step {step}  closed loop: {error}")
            return {}
        metrics = metrics_of(results)
        note(f"step {step}  closed loop: success {100 * metrics[ROLLOUT + 'success']:.0f} %")
        return metrics

    def _evaluate(self, checkpoint: Path, out: Path, ending: Callable[[], bool]) -> Mapping[str, Any]:
        out.mkdir(parents=True, exist_ok=True)
        return evaluate(checkpoint, self.config, out, self.engine.device.type, ending)


def _news(job: Future[Mapping[str, Any]] | None) -> list[Any]:
    """Results and None, or None and what went wrong; empty while it goes on."""
    assert job is not None
    if not wait([job], timeout=LOOK_S).done:
        return []
    error = job.exception()
    if error is None:
        return [dict(job.result()), None]
    if isinstance(error, UserError):
        return [None, str(error)]
    if isinstance(error, BrokenOff):
        return [None, "broken off by a signal"]
    raise error


def metrics_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Of ``results.json``: ``rollout/success`` (mean over tasks), ``rollout/failure`` (1 minus it, for
    ``trainer.keep_best``, which keeps the lowest) and ``rollout/success/TASK``.

    Tasks of which no episode ran to its end are left out.
    """
    rates = {
        task["task"]: float(task["success_rate"])
        for task in results["tasks"]
        if task["success_rate"] is not None
    }
    success = sum(rates.values()) / max(len(rates), 1)
    return {
        f"{ROLLOUT}success": success,
        f"{ROLLOUT}failure": 1 - success,
        **{f"{ROLLOUT}success/{task}": rate for task, rate in rates.items()},
    }
