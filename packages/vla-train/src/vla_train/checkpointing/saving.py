"""Checkpoints of a run: written by all ranks together, the old ones removed, the best one kept."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from vla_core.config import to_plain
from vla_core.errors import ConfigError, UserError, suggest

from vla_train.checkpointing import resume
from vla_train.checkpointing.small_files import into, write_json
from vla_train.checkpointing.snapshots import Snapshots
from vla_train.checkpointing.states import step_of
from vla_train.checkpointing.writer import Writer
from vla_train.composition import Composed
from vla_train.engine import Engine
from vla_train.lora import merged_state

BEST = "best.json"


class Saver:
    """Writes checkpoints of ``composed`` below ``run_dir``."""

    def __init__(self, composed: Composed, engine: Engine, run_dir: Path) -> None:
        self.composed, self.engine, self.run_dir = composed, engine, run_dir
        self.settings = composed.config.trainer
        self._data = "" if composed.robots is None else composed.robots.digest
        self.writer = Writer(engine, self.settings.async_save)
        self.snapshots = Snapshots()

    def write(self, step: int, folder: Path) -> Path:
        """The policy as it is now. Called by all ranks, because each may hold a part of it."""
        # There is room for one copy.
        self.writer.wait()
        if not self.writer.beside or not self.engine.shards:
            state = self.engine.state(self.snapshots.take if self.writer.beside else None)
            self.writer.run(lambda: self._save(step, folder, state))
            return folder
        gather = self.engine.state_later(self.snapshots.take, self.writer.channel)
        whole: dict[str, Tensor] = {}

        def finish(failure: OSError | None) -> None:
            if failure is not None:
                raise _unwritten(folder, failure) from failure
            self._save(step, folder, whole)

        self.writer.run_together(lambda: whole.update(gather()), finish)
        return folder

    def _save(self, step: int, folder: Path, state: Mapping[str, Tensor]) -> None:
        """By the first rank."""
        try:
            self.composed.trained.save(
                folder,
                step=step,
                config=to_plain(self.composed.config),
                weights=self.settings.save_format,
                data_digest=self._data,
                state=merged_state(self.composed.model, state) if self.settings.lora is not None else state,
            )
        except OSError as error:
            raise _unwritten(folder, error) from error

    def resume_state(self, step: int, memory: Mapping[str, Any]) -> None:
        """What ``trainer.resume`` goes on from. Called by all ranks."""
        resume.save(self.engine, self.run_dir, step, self.settings, memory, self.writer, self.snapshots)

    def forget_old(self, keep: Path) -> None:
        """Remove all but the newest ``trainer.keep_checkpoints``, once ``keep`` is written."""

        def remove() -> None:
            found = sorted(keep.parent.glob("steps_*"), key=step_of)
            for old in found[: -self.settings.keep_checkpoints]:
                if old != keep:
                    shutil.rmtree(old)

        if self.settings.keep_checkpoints:
            self.writer.run(remove)


def _unwritten(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be written ({error.strerror or error}); the one before it is whole")


ROLLOUT = "rollout/"
"""How metrics of the closed loop begin (:mod:`vla_train.evaluation.closed_loop`)."""


@dataclass
class Best:
    """The lowest value of a metric so far, and how long ago that was.

    Args:
        metric: its name; None: nothing is kept.
        patience: validations without a new best before training ends (0: never).
        value: the lowest.
        step: where.
        waited: validations since.
    """

    metric: str | None
    patience: int = 0
    value: float = math.inf
    step: int = 0
    waited: int = 0

    @classmethod
    def of(cls, metric: str | None, patience: int, seen: Mapping[str, Any] | None) -> Best:
        """What the run saw (:meth:`state`) before it stopped, if it goes on with the same metric."""
        best = cls(metric, patience)
        if seen and metric is not None and seen["metric"] == metric:
            best.value = math.inf if seen["value"] is None else seen["value"]
            best.step, best.waited = seen["step"], seen.get("waited", 0)
        return best

    def state(self) -> dict[str, Any]:
        """Plain data, for :meth:`of`."""
        value = None if math.isinf(self.value) else self.value
        return {"metric": self.metric, "value": value, "step": self.step, "waited": self.waited}

    def over(self) -> str:
        """Why training should end now; empty: it should not."""
        if not self.patience or self.waited < self.patience:
            return ""
        times = "once" if self.waited == 1 else f"{self.waited} times"
        return (
            f"the run ends here: {self.metric} was looked at {times} since its lowest, {self.value:.4g} at "
            f"step {self.step} (trainer.patience: {self.patience})"
        )

    def sees(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether a validation, or a rollout where the metric is one of those, is the best so far.

        Raises:
            ConfigError: the metric is none of the validation's, with the nearest.
        """
        rolled_out = not metrics or any(name.startswith(ROLLOUT) for name in metrics)
        if self.metric is None or rolled_out != self.metric.startswith(ROLLOUT) or not metrics:
            return False
        if self.metric not in metrics:
            raise ConfigError(f"trainer.keep_best: no metric '{self.metric}'{suggest(self.metric, metrics)}")
        if metrics[self.metric] >= self.value:
            self.waited += 1
            return False
        self.value, self.step, self.waited = metrics[self.metric], step, 0
        return True

    def write(self, run_dir: Path, main: bool) -> None:
        """Remember it beside the checkpoints."""
        if main:
            with into(run_dir / BEST):
                write_json(run_dir / BEST, self.state())


def best_of(run_dir: Path, memory: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a run that goes on had seen: as its state remembers it, or (an older state) as the file says."""
    if "best" in memory:
        seen: Mapping[str, Any] = memory["best"]
        return seen
    path = run_dir / BEST
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None
