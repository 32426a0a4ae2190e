"""From sources to batches: episode split, transforms in the workers, and an order that can resume.

The order is a function of (seed, position) alone: every epoch is a fresh permutation of all
samples, ranks take disjoint slices of the same global batch, and a resumed run reads exactly the
samples that the uninterrupted one would have read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler
from vla_core.batch import Batch
from vla_core.checks import check_views
from vla_core.collate import PolicyCollator
from vla_core.config import Tree
from vla_core.errors import ConfigError, SpecMismatch, UserError
from vla_core.resolve import resolve_part
from vla_core.sources import Source, TellsChunkEnd
from vla_core.specs import RobotSpec, check_action, check_observation
from vla_core.stats import NormStats, VectorStats
from vla_core.transforms import Pipeline
from vla_core.types import Bool, Float, Sample

from vla_train.config import DatasetsConfig


def split_episodes(episodes: Sequence[int], val_fraction: float) -> tuple[list[int], list[int]]:
    """(training, validation) episodes; the choice depends on the number of episodes alone."""
    n_val = round(len(episodes) * val_fraction)
    if val_fraction > 0:
        n_val = max(1, n_val)
    if n_val >= len(episodes):
        raise ConfigError(
            f"datasets.val_fraction={val_fraction} leaves no episode to train on (there are {len(episodes)})"
        )
    # At random, not every k-th: recordings often alternate between tasks.
    held = set(np.random.default_rng(0).permutation(len(episodes))[:n_val].tolist())
    return (
        [e for i, e in enumerate(episodes) if i not in held],
        [e for i, e in enumerate(episodes) if i in held],
    )


@dataclass(frozen=True)
class Data:
    """Opened sources. ``spec`` is their common robot with statistics over the training episodes."""

    train: Sequence[Source]
    val: Sequence[Source]
    spec: RobotSpec

    def rows(self) -> Iterable[tuple[Float | None, Float, Bool]]:
        """(state, actions, mask) of every training sample, without images."""
        for source in self.train:
            for i in range(len(source)):
                yield source.numeric(i)


def _statistics(sources: Sequence[Source]) -> NormStats:
    if len(sources) == 1:
        return sources[0].spec.statistics
    states, actions = [], []
    for source in sources:
        for i in range(len(source)):
            state, chunk, _ = source.numeric(i)
            actions.append(chunk[0])
            if state is not None:
                states.append(state)
    vectors = {"action": VectorStats.from_rows(np.stack(actions))}
    if states:
        vectors["state"] = VectorStats.from_rows(np.stack(states))
    return NormStats(vectors)


def open_data(config: DatasetsConfig, horizon: int, tree: Tree | None = None) -> Data:
    """Open the sources and split their episodes.

    Raises:
        ConfigError: unknown source or key, a first frame whose images or calibration are not what its spec
            says, or data sets that describe different robots.
    """
    train: list[Source] = []
    val: list[Source] = []
    for i, node in enumerate(config.train):
        where = f"datasets.train.{i}"
        part = resolve_part("vla.sources", node, where, tree)
        place = tree.where(where) if tree else ""
        try:
            kept, held = split_episodes(part.cls.list_episodes(part.config), config.val_fraction)
            train.append(part.cls(part.config, horizon, kept))
            if held:
                val.append(part.cls(part.config, horizon, held))
            # What a data set records is the same in every frame: better found here than in a worker.
            check_views(train[-1][0].observation, train[-1].spec)
        except UserError as error:
            raise ConfigError(f"{place}{where}: {error}") from error
    first = train[0].spec
    for i, source in enumerate(train[1:], 1):
        who = ("datasets.train.0", f"datasets.train.{i}")
        try:
            check_observation(first.observation, source.spec.observation, who)
            check_action(first.action, source.spec.action, who)
        except SpecMismatch as error:
            raise ConfigError(f"data sets of one robot must agree: {error}") from error
    return Data(train, val, replace(first, statistics=_statistics(train)))


class Numeric(NamedTuple):
    """The numbers of a raw sample: ``state [S]`` or None, ``actions [T, A]``, ``mask [T, A]``."""

    state: Float | None
    actions: Float
    mask: Bool


class TransformedDataset(Dataset[Sample]):
    """Samples of several sources after the pipeline.

    Args:
        sources: concatenated.
        pipeline: applied to every sample.
        seed: of the augmentations; None: none (validation).
        ram_cache: keep each frame's images as they are after the leading deterministic steps.
        future: give each sample the observation at its chunk's end.

    Raises:
        ConfigError: a source that cannot tell where a chunk ends, and ``future``.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        pipeline: Pipeline,
        seed: int | None,
        ram_cache: bool = False,
        future: bool = False,
    ) -> None:
        self.sources, self.pipeline, self.seed, self.future = list(sources), pipeline, seed, future
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

    def _raw(self, index: int) -> Sample:
        k, i = self._locate(index)
        return self.sources[k][i]

    def numeric(self, index: int) -> Numeric:
        """The raw numbers of a sample, without its images."""
        k, i = self._locate(index)
        return Numeric(*self.sources[k].numeric(i))

    def episode(self, index: int) -> tuple[int, int]:
        """(source, episode) of a sample."""
        k, i = self._locate(index)
        return k, self.sources[k].episode(i)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        """``key``: index, or (position in the run, index) as :class:`InfiniteBatches` gives it."""
        position, index = key if isinstance(key, tuple) else (0, key)
        rng = None if self.seed is None else np.random.default_rng((self.seed, position))
        sample = self._deterministic(index)
        end = self._chunk_end(index) if self.future else None
        if end is not None:
            # The frame of another sample: a cache holds it once.
            sample = replace(sample, future=self._deterministic(end).observation)
        return self.pipeline.random(sample, rng)

    def _deterministic(self, index: int) -> Sample:
        if self.cache is None:
            return self.pipeline.deterministic(self._raw(index))
        if index not in self.cache:
            self.cache[index] = self.pipeline.deterministic(self._raw(index))
        return self.cache[index]

    def _chunk_end(self, index: int) -> int | None:
        k, i = self._locate(index)
        source = self.sources[k]
        assert isinstance(source, TellsChunkEnd)
        end = source.chunk_end(i)
        return None if end is None else index - i + end


class InfiniteBatches(Sampler[list[tuple[int, int]]]):
    """Endless batches of (position, index) for one rank, from batch ``start`` on.

    Args:
        size: number of samples.
        batch_size: per rank.
        seed: of the permutations.
        rank, world: this process and their number.
        start: first batch (to resume).
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world, self.start = rank, world, start

    def _index(self, position: int, epochs: dict[int, np.ndarray[Any, np.dtype[np.int64]]]) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch not in epochs:
            # A batch touches at most the epochs it spans; older ones are not needed again.
            for old in [e for e in epochs if e < epoch - 1]:
                del epochs[old]
            epochs[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.size)
        return int(epochs[epoch][offset])

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epochs: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}
        batch = self.start
        while True:
            first = (batch * self.world + self.rank) * self.batch_size
            yield [(p, self._index(p, epochs)) for p in range(first, first + self.batch_size)]
            batch += 1


class Collate:
    """Picklable ``collate_fn``; ``future`` as in :class:`TransformedDataset`."""

    def __init__(self, collator: PolicyCollator, future: bool = False) -> None:
        self.collator, self.future = collator, future

    def __call__(self, samples: list[Sample]) -> Batch:
        """A training batch."""
        return self.collator(samples, future=self.future)
