"""Samples after their robot's pipeline, and the batches of a rank in an order that can resume.

The order is a function of (seed, position) alone (:class:`vla_data.mixture.Mixture`): ranks take disjoint
slices of the same global batch, and a resumed run reads exactly the samples that the uninterrupted one would
have read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from vla_core.batch import Batch
from vla_core.collate import PolicyCollator
from vla_core.errors import ConfigError
from vla_core.sources import Source, TellsChunkEnd
from vla_core.transforms import Pipeline
from vla_core.types import Bool, Float, Sample
from vla_data.mixture import Mixture

from vla_train.dataloading.readable import first_readable

SOURCE = "source"
"""Where a sample's ``meta`` has the number of its data set."""

INDEX = "index"
"""Where it has its own number, over all data sets."""


class Numeric(NamedTuple):
    """The numbers of a raw sample: ``state [S]`` or None, ``actions [T, A]``, ``mask [T, A]``."""

    state: Float | None
    actions: Float
    mask: Bool


class TransformedDataset(Dataset[Sample]):
    """Samples of several sources, each after the pipeline of its robot.

    Args:
        sources: concatenated.
        pipelines: embodiment -> what is applied to its samples.
        seed: of the augmentations; None: none (validation).
        ram_cache: keep each frame's images as they are after the leading deterministic steps.
        future: give each sample the observation at its chunk's end.

    Raises:
        ConfigError: a source that cannot tell where a chunk ends, and ``future``.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        pipelines: Mapping[str, Pipeline],
        seed: int | None,
        ram_cache: bool = False,
        future: bool = False,
    ) -> None:
        self.sources, self.pipelines, self.seed, self.future = list(sources), dict(pipelines), seed, future
        for source in sources if future else ():
            if not isinstance(source, TellsChunkEnd):
                raise ConfigError(
                    f"datasets.train: {type(source).__name__} has no method 'chunk_end', so it cannot tell "
                    "which observation a chunk leads to; switch the auxiliary loss that needs it off"
                )
        self.ends = np.cumsum([len(source) for source in sources])
        self.cache: dict[int, Sample] | None = {} if ram_cache else None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        k = int(np.searchsorted(self.ends, index, side="right"))
        return k, index - int(self.ends[k] - len(self.sources[k]))

    def index(self, source: int, i: int) -> int:
        """Index of sample ``i`` of a source."""
        return int(self.ends[source]) - len(self.sources[source]) + i

    def _raw(self, index: int) -> tuple[Sample, Pipeline]:
        k, i = self._locate(index)
        name, sample = self.sources[k].spec.embodiment, self.sources[k][i]
        if sample.observation.embodiment != name:
            # The config has given the robot another name.
            sample = replace(sample, observation=replace(sample.observation, embodiment=name))
        return replace(sample, meta={**sample.meta, SOURCE: k, INDEX: index}), self.pipelines[name]

    def numeric(self, index: int) -> Numeric:
        """The raw numbers of a sample, without its images."""
        k, i = self._locate(index)
        return Numeric(*self.sources[k].numeric(i))

    def episode(self, index: int) -> tuple[int, int]:
        """(source, episode) of a sample."""
        k, i = self._locate(index)
        return k, self.sources[k].episode(i)

    def place(self, index: int) -> tuple[int, int, int]:
        """(source, episode, frame in it) of a sample, from its numbers alone."""
        k, i = self._locate(index)
        source = self.sources[k]
        episode, first = source.episode(i), i
        while first > 0 and source.episode(first - 1) == episode:
            first -= 1
        return k, episode, i - first

    def first(self, source: int) -> Sample:
        """A readable sample of a source, the first if that is one."""
        return first_readable(lambda i: self[(0, self.index(source, i))], len(self.sources[source]))

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        """``key``: index, or (position in the run, index) as :class:`InfiniteBatches` gives it."""
        position, index = key if isinstance(key, tuple) else (0, key)
        rng = None if self.seed is None else np.random.default_rng((self.seed, position))
        sample = self._deterministic(index)
        end = self._chunk_end(index) if self.future else None
        if end is not None:
            # The frame of another sample: a cache holds it once.
            sample = replace(sample, future=self._deterministic(end).observation)
        return self.pipelines[sample.observation.embodiment].random(sample, rng)

    def _deterministic(self, index: int) -> Sample:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        raw, pipeline = self._raw(index)
        sample = pipeline.deterministic(raw)
        if self.cache is not None:
            self.cache[index] = sample
        return sample

    def _chunk_end(self, index: int) -> int | None:
        k, i = self._locate(index)
        source = self.sources[k]
        assert isinstance(source, TellsChunkEnd)
        end = source.chunk_end(i)
        return None if end is None else index - i + end


class InfiniteBatches(Sampler[list[tuple[int, int]]]):
    """Endless batches of (position, index) for one rank, from batch ``start`` on.

    Args:
        mixture: the order.
        batch_size: per rank.
        rank, world: this process and their number.
        start: first batch (to resume).
    """

    def __init__(
        self, mixture: Mixture, batch_size: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> None:
        self.mixture, self.batch_size = mixture, batch_size
        self.rank, self.world, self.start = rank, world, start
        self.firsts = np.cumsum([0, *mixture.sizes[:-1]])

    def _index(self, position: int) -> int:
        k, i = self.mixture.locate(position)
        return int(self.firsts[k]) + i

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batch = self.start
        while True:
            first = (batch * self.world + self.rank) * self.batch_size
            yield [(p, self._index(p)) for p in range(first, first + self.batch_size)]
            batch += 1


class Collate:
    """Picklable ``collate_fn``; ``future`` as in :class:`TransformedDataset`."""

    def __init__(self, collator: PolicyCollator, future: bool = False) -> None:
        self.collator, self.future = collator, future

    def __call__(self, samples: list[Sample]) -> Batch:
        """A training batch."""
        batch = self.collator(samples, future=self.future)
        batch.source = torch.tensor([sample.meta.get(SOURCE, 0) for sample in samples])
        batch.index = torch.tensor([sample.meta.get(INDEX, 0) for sample in samples])
        return batch
