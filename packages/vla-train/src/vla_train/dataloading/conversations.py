"""Conversations in a run: opened, in an order that can resume, and joined with the robots' batches.

The order is that of the robots' samples: a fresh permutation an epoch, a function of (seed, position) alone,
in which ranks take disjoint slices of one global batch. In co-training each micro-batch has one batch of
either kind, and both cursors are functions of the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from vla_core.batch import Batch, ConversationBatch
from vla_core.config import Tree
from vla_core.conversations import Conversation, ConversationSource
from vla_core.conversing import cannot_converse, check_converses
from vla_core.errors import ConfigError, UserError
from vla_core.framework import FrameworkConfig
from vla_core.interfaces import ConversationCollator
from vla_core.resolve import resolve_part
from vla_data.mixture import Mixture

from vla_train.dataloading.conversation_config import ConversationsConfig
from vla_train.dataloading.data import InfiniteBatches
from vla_train.dataloading.feed import PREFETCHED, Failed
from vla_train.dataloading.recycling import Recycled
from vla_train.dataloading.workers import begin, end, reading, shielded
from vla_train.engine import Engine

AnyBatch: TypeAlias = Batch | ConversationBatch


@dataclass(frozen=True)
class Conversations:
    """Opened sources, and what writes their batches.

    Args:
        sources: joined.
        collator: of the backbone.
        batch_size: conversations of a micro-batch and rank.
        config: where all this comes from.
    """

    sources: Sequence[ConversationSource]
    collator: ConversationCollator
    batch_size: int
    config: ConversationsConfig

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def describe(self) -> str:
        """How many, and how they are written, in one line."""
        n, config = len(self.sources), self.config
        return (
            f"conversations: {len(self)} in {n} data set{'s' * (n > 1)}, {self.batch_size} a micro-batch and "
            f"process, {'packed into' if config.pack else 'in'} rows of at most {config.max_tokens} tokens"
        )

    def first(self, count: int) -> ConversationBatch:
        """A batch of the first conversations of the first source."""
        source = self.sources[0]
        return self.collator([source[i % len(source)] for i in range(count)])


def with_language_head(framework: FrameworkConfig, tree: Tree | None) -> FrameworkConfig:
    """``framework`` with a backbone that has a language head.

    Raises:
        ConfigError: a backbone that cannot be trained on conversations.
    """
    part = resolve_part("vla.vlms", framework.vlm, "framework.vlm", tree)
    if "language_head" not in {field.name for field in fields(part.config)}:
        raise cannot_converse(part.name)
    return replace(framework, vlm={**framework.vlm, "language_head": True})


def image_size_of(config: ConversationsConfig, framework: FrameworkConfig) -> tuple[int, int]:
    """(height, width) in a run without robots.

    Raises:
        ConfigError: nothing says it.
    """
    if config.image_size is not None:
        return config.image_size
    for step in reversed(framework.transforms):
        if step.get("name") == "resize" and {"height", "width"} <= set(step):
            return int(step["height"]), int(step["width"])
    raise ConfigError(
        "datasets.vlm.image_size is not set, and there is neither a robot nor a resize in "
        "framework.transforms; set it, e.g. [224, 224]"
    )


def open_conversations(
    config: ConversationsConfig, model: Any, batch_size: int, tree: Tree | None = None
) -> Conversations:
    """Open the sources for the backbone of ``model``.

    Raises:
        ConfigError: unknown source or key, a file that is not whole, or images of two sizes.
    """
    sources: list[ConversationSource] = []
    for i, node in enumerate(config.sources):
        where = f"datasets.vlm.sources.{i}"
        part = resolve_part("vla.conversations", node, where, tree)
        try:
            sources.append(part.cls(part.config))
        except UserError as error:
            raise ConfigError(f"{tree.where(where) if tree else ''}{where}: {error}") from error
    vlm: Any = check_converses(model.vlm, type(model.vlm).__name__)
    if config.image_size is not None and tuple(config.image_size) != tuple(vlm.image_size):
        raise ConfigError(
            f"datasets.vlm.image_size is {list(config.image_size)}, and the robot's images are "
            f"{list(vlm.image_size)} after framework.transforms; a backbone has one size, so leave it out"
        )
    collator = vlm.conversation_collator(config.max_tokens, config.pack)
    return Conversations(sources, collator, config.batch_size or batch_size, config)


class _Joined(Dataset[Any]):
    """Conversations of all sources, or what is wrong with one."""

    def __init__(self, sources: Sequence[ConversationSource]) -> None:
        self.sources = list(sources)
        self.ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, key: tuple[int, int]) -> Conversation | Failed:
        _, index = key
        k = int(np.searchsorted(self.ends, index, side="right"))
        source = self.sources[k]
        try:
            return source[index - int(self.ends[k]) + len(source)]
        except UserError as error:
            return Failed(error)


class _Collate:
    """Picklable ``collate_fn``."""

    def __init__(self, collator: ConversationCollator) -> None:
        self.collator = collator

    def __call__(self, talks: list[Conversation | Failed]) -> ConversationBatch | Failed:
        whole = []
        for talk in talks:
            if isinstance(talk, Failed):
                return talk
            whole.append(talk)
        try:
            return self.collator(whole)
        except UserError as error:
            return Failed(error)


class Steps(Protocol):
    """What the loop reads: the micro-batches of the next step."""

    def step(self) -> Sequence[AnyBatch]: ...

    def close(self) -> None: ...


class ConversationFeed:
    """Endless steps of conversations on the CPU, a function of (seed, step) alone.

    Args:
        talks: opened.
        seed: of the order.
        workers: processes that read and collate.
        engine: tells rank, number of processes and micro-batches a step.
        start: steps done before.
    """

    def __init__(
        self, talks: Conversations, *, seed: int, workers: int, engine: Engine, start: int = 0
    ) -> None:
        self.accumulation = engine.accumulation
        joined = _Joined(talks.sources)
        order = Mixture([len(joined)], [1.0], seed)
        batches = InfiniteBatches(
            order, talks.batch_size, engine.rank, engine.world, start * engine.accumulation
        )
        loader: DataLoader[Any] = DataLoader(
            joined,
            batch_sampler=batches,
            collate_fn=Recycled(_Collate(talks.collator)),
            num_workers=workers,
            worker_init_fn=begin,
            pin_memory=engine.device.type == "cuda",
            prefetch_factor=PREFETCHED if workers else None,
            # Worker seeds must not draw from the generator that gives the noise.
            generator=torch.Generator().manual_seed(seed),
        )
        with shielded():
            self._batches: Iterator[ConversationBatch | Failed] = iter(loader)

    def step(self) -> list[ConversationBatch]:
        """The micro-batches of the next step.

        Raises:
            UserError: what is wrong with a conversation or an image, naming file and entry.
        """
        return [self._next() for _ in range(self.accumulation)]

    def close(self) -> None:
        """End the loader; there are no more steps."""
        end(self._batches)

    def _next(self) -> ConversationBatch:
        with reading():
            batch = next(self._batches)
        if isinstance(batch, Failed):
            raise batch.error
        return batch


class BothFeeds:
    """Each micro-batch has a batch of robots and one of conversations.

    Args:
        robots: yields :class:`Batch`.
        talks: as many micro-batches a step.
    """

    def __init__(self, robots: Any, talks: ConversationFeed) -> None:
        self.robots, self.talks = robots, talks

    def step(self) -> list[Batch]:
        """The micro-batches of the next step."""
        pairs = zip(self.robots.step(), self.talks.step(), strict=True)
        return [replace(batch, conversations=talk) for batch, talk in pairs]

    def close(self) -> None:
        """End both loaders."""
        self.robots.close()
        self.talks.close()


def together(robots: Any, talks: Conversations | None, **cursor: Any) -> Steps:
    """What a run reads: batches of robots, of conversations, or both in every micro-batch.

    Args:
        robots: a :class:`~vla_train.dataloading.feed.Feed`, or None.
        talks: opened, or None.
        cursor: the further arguments of :class:`ConversationFeed`.
    """
    feed = None if talks is None else ConversationFeed(talks, **cursor)
    if robots is None:
        assert feed is not None
        return feed
    steps: Steps = robots if feed is None else BothFeeds(robots, feed)
    return steps
