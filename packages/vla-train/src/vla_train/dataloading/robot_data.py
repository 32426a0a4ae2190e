"""The robots' samples in a run: what is drawn, in which order, and what is held out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn
from vla_core.batch import Batch
from vla_core.errors import ConfigError, suggest
from vla_data.mixture import Mixture

from vla_train.auxiliary import wants_future
from vla_train.checkpointing.saving import ROLLOUT
from vla_train.composition import Composed
from vla_train.dataloading.conversations import AnyBatch, Conversations
from vla_train.dataloading.data import Collate, InfiniteBatches, TransformedDataset
from vla_train.dataloading.feed import Feed
from vla_train.dataloading.quarantine import Quarantine
from vla_train.engine import Engine
from vla_train.evaluation.validate import HeldOut, Validation

GIB = 2**30


class RobotData:
    """Training samples, their order, and the validation of a composed run.

    Args:
        composed: with robots.
        model: decides whether a sample needs the observation at its chunk's end.

    Raises:
        ConfigError: the best checkpoint is to be kept by a validation that there is not.
    """

    def __init__(self, composed: Composed, model: nn.Module) -> None:
        config, data, policy = composed.config, composed.data, composed.policy
        settings, cached = config.trainer, config.datasets.ram_cache
        self.config, self.labels = config, data.labels
        self.pipelines = pipelines = policy.pipelines
        future = wants_future(model, data.train, settings.batch_size)
        self.collate = Collate(policy.collator, future)
        self.dataset = TransformedDataset(data.train, pipelines, config.seed, cached, future)
        weights = [one.weight for one in data.sets]
        sizes = [len(source) for source in data.train]
        self.mixture = Mixture(sizes, weights, config.seed, config.datasets.neighbours)
        held = [
            HeldOut(s.label, TransformedDataset([s.val], pipelines, None, cached), pipelines[s.embodiment])
            for s in data.sets
            if s.val is not None
        ]
        self.validation: Validation | None = None
        if held:
            shape, n = policy.noise_shape, settings.val_samples
            self.validation = Validation(held, Collate(policy.collator), shape, n, settings.batch_size)
        best = settings.keep_best or ROLLOUT
        if best.startswith(ROLLOUT):
            return
        if self.validation is None:
            raise ConfigError(
                f"trainer.keep_best: '{best}' is of held-out episodes, and none is held out; set "
                "datasets.val_fraction, or leave it out"
            )
        if best not in (names := self.validation.names):
            raise ConfigError(f"trainer.keep_best: no metric '{best}'{suggest(best, names)}")

    @property
    def epoch(self) -> str:
        """What an epoch is, in one line."""
        return self.mixture.describe(self.labels)

    def first_batch(self) -> Batch:
        """That of the first rank."""
        keys = next(iter(InfiniteBatches(self.mixture, self.config.trainer.batch_size)))
        return self.collate([self.dataset[key] for key in keys])

    def probe(self) -> Batch:
        """Samples of every data set: what no term of them depends on cannot be trained.

        Raises:
            UserError: a sentence that some step may draw does not fit the prompt.
        """
        rows = [self.dataset.first(k) for k in range(len(self.dataset.sources))]
        drawn = {s for p in self.pipelines.values() for step in p.steps for s in step.sentences}
        for sentence in sorted(drawn):
            said = replace(rows[0], observation=replace(rows[0].observation, instruction=sentence))
            self.collate([said])
        return self.collate(rows * (1 if len(rows) > 1 else 2))

    def sized(self) -> Batch:
        """A batch of the run's size, of the first sample of each data set over and over.

        Raises:
            ConfigError: this machine has no room for one.
        """
        rows = [self.dataset.first(k) for k in range(len(self.dataset.sources))]
        size, room = self.config.trainer.batch_size, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        takes = size * self.collate(rows[:1]).images.nbytes
        if takes > room:
            raise ConfigError(
                f"trainer.batch_size: the pictures of {size} samples take {takes / GIB:.0f} GiB, and this "
                f"machine has {room / GIB:.0f} GiB"
            )
        return self.collate([rows[i % len(rows)] for i in range(size)])

    def quarantine(self, run_dir: Path, engine: Engine, console: Console) -> Quarantine | None:
        """Takes samples that cannot be read; None: one of them ends the run."""
        datasets = self.config.datasets
        if datasets.on_bad_sample == "error":
            return None
        shown, budget = console if engine.is_main else None, datasets.bad_sample_budget
        return Quarantine(self.labels, self.mixture, budget, run_dir, engine, shown)

    def feed(self, quarantine: Quarantine | None, **cursor: Any) -> Feed:
        """The batches of a run; ``cursor``: more arguments of :class:`~vla_train.dataloading.feed.Feed`."""
        cursor |= {"batch_size": self.config.trainer.batch_size, "quarantine": quarantine}
        return Feed(self.dataset, self.collate, self.mixture, **cursor)


def probe(robots: RobotData | None, talks: Conversations | None, sized: bool = False) -> AnyBatch:
    """A sample of each data set of a run; ``sized``: as many as a micro-batch has."""
    talk = None if talks is None else talks.first(talks.batch_size if sized else 1)
    if robots is None:
        assert talk is not None
        return talk
    return replace(robots.sized() if sized else robots.probe(), conversations=talk)
