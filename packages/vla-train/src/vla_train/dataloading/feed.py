"""The loader of a rank: the micro-batches of each step, from any step on.

What cannot be read in a worker travels as a value: raised there, it would arrive as a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from vla_core.batch import Batch
from vla_core.errors import UserError
from vla_core.types import Sample
from vla_data.mixture import Mixture

from vla_train.dataloading.data import Collate, InfiniteBatches, TransformedDataset
from vla_train.dataloading.quarantine import Quarantine, Skipped
from vla_train.dataloading.recycling import Recycled
from vla_train.dataloading.workers import begin, end, reading, shielded
from vla_train.engine import Engine

PREFETCHED = 4
ATTEMPTS = 15
"""Samples that are tried in the place of a bad one."""


@dataclass(frozen=True)
class Failed:
    """A mistake in the data that ends the run."""

    error: UserError


@dataclass(frozen=True)
class Replaced:
    """A sample in the place of others that could not be read."""

    sample: Sample
    skipped: tuple[Skipped, ...]


class _Careful(Dataset[Any]):
    """Samples, or what is wrong with them.

    ``replace``: take another sample of the same data set, a function of (seed, position) too.
    """

    def __init__(self, dataset: TransformedDataset, seed: int, replace: bool) -> None:
        self.dataset, self.seed, self.replace = dataset, seed, replace

    def __getitem__(self, key: tuple[int, int]) -> Sample | Replaced | Failed:
        try:
            return self.dataset[key]
        except UserError as error:
            return self._another(key, error) if self.replace else Failed(error)

    def _another(self, key: tuple[int, int], error: UserError) -> Replaced | Failed:
        position, index = key
        skipped = [self._skipped(index, error)]
        source = skipped[0].source
        rng = np.random.default_rng((self.seed, position, 1))
        for _ in range(ATTEMPTS):
            index = self.dataset.index(source, int(rng.integers(len(self.dataset.sources[source]))))
            try:
                return Replaced(self.dataset[position, index], tuple(skipped))
            except UserError as again:
                skipped.append(self._skipped(index, again))
        last = skipped[-1].why
        return Failed(UserError(f"{ATTEMPTS + 1} samples in a row could not be read, the last: {last}"))

    def _skipped(self, index: int, error: UserError) -> Skipped:
        source, episode, frame = self.dataset.place(index)
        return Skipped(source, index, episode, frame, str(error))


class _CarefulCollate:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Sample | Replaced | Failed]) -> tuple[Batch, list[Skipped]] | Failed:
        good: list[Sample] = []
        skipped: list[Skipped] = []
        for sample in samples:
            if isinstance(sample, Failed):
                return sample
            if isinstance(sample, Replaced):
                skipped += sample.skipped
                sample = sample.sample
            good.append(sample)
        try:
            return self.collate(good), skipped
        except UserError as error:
            return Failed(error)


class Feed:
    """Endless steps of micro-batches on the CPU, a function of (seed, step) alone.

    Args:
        dataset: of samples.
        mixture: their order.
        collate: to batches.
        batch_size: samples of a micro-batch and rank.
        seed: of what takes the place of a bad sample.
        workers: processes that decode and collate.
        engine: tells rank, number of processes and micro-batches a step.
        start: steps done before.
        quarantine: what is told of samples that cannot be read; None: one of them ends the run.
    """

    def __init__(
        self,
        dataset: TransformedDataset,
        collate: Collate,
        mixture: Mixture,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        engine: Engine,
        start: int = 0,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.accumulation, self.quarantine = engine.accumulation, quarantine
        batches = InfiniteBatches(mixture, batch_size, engine.rank, engine.world, start * engine.accumulation)
        loader: DataLoader[Any] = DataLoader(
            _Careful(dataset, seed, quarantine is not None),
            batch_sampler=batches,
            collate_fn=Recycled(_CarefulCollate(collate)),
            num_workers=workers,
            worker_init_fn=begin,
            pin_memory=engine.device.type == "cuda",
            prefetch_factor=PREFETCHED if workers else None,
            # Worker seeds must not draw from the generator that gives the noise.
            generator=torch.Generator().manual_seed(seed),
        )
        with shielded():
            self._batches: Iterator[tuple[Batch, list[Skipped]] | Failed] = iter(loader)

    def step(self) -> list[Batch]:
        """The micro-batches of the next step.

        Raises:
            UserError: what is wrong with a sample, as its reader or its transform said it.
        """
        return [self._next() for _ in range(self.accumulation)]

    def close(self) -> None:
        """End the loader; there are no more steps."""
        end(self._batches)

    def _next(self) -> Batch:
        with reading():
            read = next(self._batches)
        if isinstance(read, Failed):
            raise read.error
        batch, skipped = read
        if self.quarantine is not None:
            self.quarantine.see(len(batch), skipped)
        return batch
