"""Steps whose loss or gradient is not finite: left out by all ranks, their samples named, counted.

The ranks agree without asking each other: where a loss is not finite its gradient is made so, the exchange of
gradients spreads that to all, and each finds the same norm. The optimizer leaves such a step out by a flag on
the device (:meth:`vla_train.optimizer.masters.MasterAdamW.limit`), and the host learns of it when it has
the next step's work already under way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor
from vla_core.batch import Batch
from vla_core.errors import UserError

from vla_train.dataloading.conversations import AnyBatch
from vla_train.engine import Engine
from vla_train.monitoring.later import Later
from vla_train.optimizer.ema import EMA

if TYPE_CHECKING:
    from vla_train.dataloading.robot_data import RobotData
SHOWN = 8
"""Samples in a line; all are in the file."""


@dataclass(frozen=True)
class _Micro:
    """A micro-batch on the CPU, its loss, and of its rows ``[B, 2]`` where the head tells them."""

    batch: AnyBatch
    loss: Tensor
    rows: Tensor | None


class BadSteps:
    """Leaves out up to ``limit`` steps.

    Args:
        engine: whose optimizer is a :class:`~vla_train.optimizer.masters.MasterAdamW`.
        limit: steps that may be left out; one more ends the run.
        robots: tell where a sample is from; None: there are conversations alone.
        ema: counts its updates.
        run_dir: gets ``bad_steps.jsonl`` with a line a sample.
        console: where they are said, on the first rank.
    """

    def __init__(
        self,
        engine: Engine,
        limit: int,
        robots: RobotData | None,
        ema: EMA | None,
        run_dir: Path,
        console: Console,
    ) -> None:
        self.engine, self.limit, self.robots, self.ema, self.console = engine, limit, robots, ema, console
        self.path = run_dir / "bad_steps.jsonl"
        self.count = 0
        """Left out since the run began."""
        self._now: list[_Micro] = []
        self._pending: tuple[int, Later, list[_Micro]] | None = None

    def see(self, batch: AnyBatch, loss: Tensor, rows: Tensor | None) -> Tensor:
        """A micro-batch; returns its loss, with a gradient that is not finite where the loss is not."""
        self._now.append(_Micro(batch, loss.detach(), rows))
        return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)

    def end(self, step: int, norm: Tensor) -> Tensor:
        """The gradients of a step are exchanged; returns whether the step counts, on the device."""
        fine = norm.detach().isfinite()
        self._pending, self._now = (step, Later(fine), self._now), []
        return fine

    def settle(self) -> None:
        """Learn whether the last step was left out. Called by all ranks.

        Raises:
            UserError: it is one too many; with its samples.
        """
        if self._pending is None:
            return
        step, fine, seen = self._pending
        self._pending = None
        if fine.read():
            return
        self.count += 1
        masters = self.engine.masters
        assert masters is not None
        masters.uncount()
        if self.ema is not None:
            self.ema.count -= 1
        names = self._note(step, seen)
        if self.count > self.limit:
            raise UserError(
                f"the loss or its gradient is not finite in {self.count} steps, more than "
                f"trainer.skip_bad_steps={self.limit} allows; the last is step {step}: {names}; all are in "
                f"{self.path}. Look at these samples; if they are sound, lower trainer.learning_rate or "
                "raise trainer.warmup_steps"
            )

    def _note(self, step: int, seen: list[_Micro]) -> str:
        """Say and write which samples a step had, of all ranks."""
        guilty = [place for micro in seen for place in self._places(micro, micro.loss.isfinite())]
        places = self.engine.gather(guilty)
        if not places:
            # Some gradient alone: after the exchange nobody knows whose.
            every = [place for micro in seen for place in self._places(micro, None)]
            places = self.engine.gather(every)
        why = places[0]["why"]
        texts = [_text(place) for place in places]
        more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        names = f"{why} of {'; '.join(texts[:SHOWN])}{more}"
        if self.engine.is_main:
            with self.path.open("a") as file:
                for place in places:
                    file.write(json.dumps({"step": step, **place}) + "\n")
            text = f"step {step} is left out, its {names} is not finite"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        return names

    def _places(self, micro: _Micro, fine: Tensor | None) -> Iterator[dict[str, Any]]:
        """Where the rows of a micro-batch are from; ``fine``: whether its loss is finite (None: whatever)."""
        if fine is not None and bool(fine):
            return
        why = "gradient" if fine is None else "loss"
        index = micro.batch.index if isinstance(micro.batch, Batch) else None
        if index is None or self.robots is None:
            yield {"why": why, "data": "conversations", "rank": self.engine.rank}
            return
        rows = list(range(len(index)))
        if fine is not None and micro.rows is not None:
            bad = (~micro.rows.isfinite().all(1)).nonzero().flatten().tolist()
            # A term over the batch as a whole is of no row.
            rows = bad or rows
        for i in rows:
            source, episode, frame = self.robots.dataset.place(int(index[i]))
            label = self.robots.labels[source]
            yield {"why": why, "data": label, "episode": episode, "frame": frame, "rank": self.engine.rank}


def _text(place: Mapping[str, Any]) -> str:
    if "episode" not in place:
        return f"{place['data']} of process {place['rank']}"
    return f"{place['data']}, episode {place['episode']}, frame {place['frame']}"
