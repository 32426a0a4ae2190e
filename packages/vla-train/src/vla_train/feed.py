"""The loader of a rank: the micro-batches of each step, from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset
from vla_core.batch import Batch
from vla_core.errors import UserError
from vla_core.types import Sample

from vla_train.data import Collate, InfiniteBatches, TransformedDataset
from vla_train.engine import Engine

PREFETCHED = 4


@dataclass(frozen=True)
class Failed:
    """A mistake in the data on its way out of a worker: raised there, it would arrive as a traceback."""

    error: UserError


class _Careful(Dataset[Any]):
    """Samples, or what is wrong with them."""

    def __init__(self, dataset: TransformedDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Sample | Failed:
        try:
            return self.dataset[key]
        except UserError as error:
            return Failed(error)


class _CarefulCollate:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Sample | Failed]) -> Batch | Failed:
        for sample in samples:
            if isinstance(sample, Failed):
                return sample
        try:
            return self.collate(cast("list[Sample]", samples))
        except UserError as error:
            return Failed(error)


class Feed:
    """Endless steps of micro-batches on the CPU, a function of (seed, step) alone.

    Args:
        dataset: of samples.
        collate: to batches.
        batch_size: samples of a micro-batch and rank.
        seed: of the order.
        workers: processes that decode and collate.
        engine: tells rank, number of processes and micro-batches a step.
        start: steps done before.
    """

    def __init__(
        self,
        dataset: TransformedDataset,
        collate: Collate,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        engine: Engine,
        start: int = 0,
    ) -> None:
        self.accumulation = engine.accumulation
        batches = InfiniteBatches(
            len(dataset), batch_size, seed, engine.rank, engine.world, start * engine.accumulation
        )
        loader: DataLoader[Any] = DataLoader(
            _Careful(dataset),
            batch_sampler=batches,
            collate_fn=_CarefulCollate(collate),
            num_workers=workers,
            pin_memory=engine.device.type == "cuda",
            prefetch_factor=PREFETCHED if workers else None,
            # Worker seeds must not draw from the generator that gives the noise.
            generator=torch.Generator().manual_seed(seed),
        )
        self._batches: Iterator[Batch | Failed] = iter(loader)

    def step(self) -> list[Batch]:
        """The micro-batches of the next step.

        Raises:
            UserError: what is wrong with a sample, as its reader or its transform said it.
        """
        return [self._next() for _ in range(self.accumulation)]

    def _next(self) -> Batch:
        batch = next(self._batches)
        if isinstance(batch, Failed):
            raise batch.error
        return batch
