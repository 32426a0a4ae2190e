"""Samples that could not be read: noted, counted, and too many of them end the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from vla_core.errors import UserError
from vla_data.mixture import Mixture

from vla_train.engine import Engine

SHOWN = 5
"""Lines a rank says; all are in the file."""


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out: number of its data set, sample in it, its place, and why."""

    source: int
    sample: int
    episode: int
    frame: int
    why: str


class Quarantine:
    """Counts what the workers of a rank left out.

    Args:
        labels: names of the data sets.
        mixture: the order, for the length of an epoch.
        budget: most samples left out, as a share of an epoch (later: of what was drawn).
        run_dir: gets ``quarantine.jsonl`` with a line a sample (``quarantine.RANK.jsonl`` of other ranks).
        engine: for the sum over ranks.
        console: where the first lines are shown; None: nowhere.
    """

    def __init__(
        self,
        labels: Sequence[str],
        mixture: Mixture,
        budget: float,
        run_dir: Path,
        engine: Engine,
        console: Console | None,
    ) -> None:
        self.labels, self.mixture, self.budget, self.engine, self.console = (
            labels,
            mixture,
            budget,
            engine,
            console,
        )
        name = "quarantine.jsonl" if engine.is_main else f"quarantine.{engine.rank}.jsonl"
        self.path = run_dir / name
        self._counts = [0] * len(labels)
        self._seen: set[tuple[int, int]] = set()
        self._drawn = 0

    def see(self, rows: int, skipped: Iterable[Skipped]) -> None:
        """A batch of ``rows`` was read, and these were not."""
        self._drawn += rows
        for one in skipped:
            self._counts[one.source] += 1
            if (one.source, one.sample) in self._seen:
                continue
            self._seen.add((one.source, one.sample))
            label = self.labels[one.source]
            note = {"data": label, "episode": one.episode, "frame": one.frame, "why": one.why}
            with self.path.open("a") as file:
                file.write(json.dumps(note) + "\n")
            if len(self._seen) <= SHOWN:
                self._say(f"quarantined: {label}, episode {one.episode}, frame {one.frame}: {one.why}")
            if len(self._seen) == SHOWN:
                self._say(f"further ones are in {self.path}")

    def _say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def check(self) -> dict[str, float]:
        """``data/LABEL/skipped`` over all ranks since the start, of those that have any. Called by all ranks.

        Raises:
            UserError: there are more than the budget allows.
        """
        # On the CPU's numbers, but summed where the ranks meet.
        local = torch.tensor([*self._counts, self._drawn], dtype=torch.float64)
        if self.engine.world > 1:
            local = self.engine.sum(local.float().to(self.engine.device)).cpu().double()
        *counts, drawn = local.tolist()
        total, of = sum(counts), max(self.mixture.length, drawn)
        if total > self.budget * of:
            raise UserError(
                f"{total:.0f} of {of:.0f} samples could not be read, more than datasets.bad_sample_budget="
                f"{self.budget:g} allows; see {self.path} for which, repair them or leave their episodes out"
            )
        pairs = zip(self.labels, counts, strict=True)
        return {f"data/{label}/skipped": count for label, count in pairs if count}
