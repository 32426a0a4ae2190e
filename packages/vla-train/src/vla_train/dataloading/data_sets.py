"""Data sets of a run: opened, their episodes split, and the robots they are of.

Several data sets may be of one robot, which must then be the same in all of them, or of several robots with
cameras, dims and rates of their own. Statistics are per robot, over all its training episodes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from vla_core.checks import check_views
from vla_core.config import Tree, build_config
from vla_core.errors import ConfigError, SpecMismatch, UserError
from vla_core.ranges import Positive
from vla_core.resolve import resolve_part
from vla_core.sources import Source, TellsFingerprint, TellsNotes, TellsRows
from vla_core.specs import RobotSpec, check_action, check_observation
from vla_core.stats import NormStats
from vla_core.streaming import StreamingStats
from vla_core.types import Bool, Float
from vla_data.errors import BadDataError

from vla_train.config import DatasetsConfig
from vla_train.dataloading.leaks import Split, leaks
from vla_train.dataloading.one_robot import check_order, remarks
from vla_train.dataloading.readable import TRIES, first_readable


@dataclass(frozen=True)
class EntryConfig:
    """What an entry of ``datasets.train`` may say besides the source's own keys.

    Args:
        weight: how often an epoch holds each of its samples.
        label: what its figures are called (``data/LABEL/loss``); null: the last part of its ``path``, or the
            source's name, numbered where that is taken.
        embodiment: the robot's name instead of the one that the data set gives.
    """

    weight: Positive = 1.0
    label: str | None = None
    embodiment: str | None = None

    def check(self) -> None:
        """Raise :class:`ConfigError` for a value that cannot be."""
        if self.label is not None and not re.fullmatch(r"[\w.\-]+", self.label):
            raise ConfigError(f"label: '{self.label}' must be of letters, digits, '_', '-' and '.'")


OWN_KEYS = ("weight", "label", "embodiment")


@dataclass(frozen=True)
class DataSet:
    """An opened entry; ``val`` is None without held-out episodes, ``where`` its key in the config."""

    label: str
    weight: float
    train: Source
    val: Source | None
    where: str

    @property
    def embodiment(self) -> str:
        """The robot."""
        return self.train.spec.embodiment


@dataclass(frozen=True)
class Data:
    """Opened data sets.

    ``specs``: each robot, with statistics over all its training episodes; ``remarks``: where data sets of one
    robot may not mean the same, or one trains on what another holds out.
    """

    sets: Sequence[DataSet]
    specs: Mapping[str, RobotSpec]
    remarks: Sequence[str] = ()

    @property
    def train(self) -> list[Source]:
        """Training sources, in the order of the config."""
        return [one.train for one in self.sets]

    @property
    def val(self) -> list[Source]:
        """Held-out sources."""
        return [one.val for one in self.sets if one.val is not None]

    @property
    def labels(self) -> list[str]:
        """One a data set."""
        return [one.label for one in self.sets]

    @property
    def notes(self) -> list[str]:
        """What the sources say, a line each."""
        said = [(one, one.train.notes) for one in self.sets if isinstance(one.train, TellsNotes)]
        return [*(f"data set {one.label}: {note}" for one, notes in said for note in notes), *self.remarks]

    def rows(self, embodiment: str) -> Callable[[], Iterable[tuple[Float | None, Float, Bool]]]:
        """(state, actions, mask) of every training sample of a robot, without images."""
        sources = [one.train for one in self.sets if one.embodiment == embodiment]

        def read() -> Iterator[tuple[Float | None, Float, Bool]]:
            for source in sources:
                for i in range(len(source)):
                    yield source.numeric(i)

        return read

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers of the training samples, in hex; empty where a source cannot tell.

        The same wherever the data set lies; pictures and sentences are no part of it.
        """
        told = self.fingerprint
        return "" if told is None else hashlib.sha256(told.encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str | None:
        """A text that changes with any number of the training samples; None where a source cannot tell."""
        parts = []
        for one in self.sets:
            told = _fingerprint(one.train)
            if told is None:
                return None
            parts.append(f"{one.embodiment}:{told}")
        return "|".join(parts)


def _fingerprint(source: Source) -> str | None:
    """What the source says, or a hash of the columns and episodes themselves."""
    if isinstance(source, TellsFingerprint):
        return source.fingerprint()
    if not isinstance(source, TellsRows):
        return None
    digest = hashlib.sha256()
    for vector in ("state", "action"):
        rows = source.rows(vector)
        digest.update(b"none" if rows is None else str(rows.shape).encode())
        if rows is not None:
            digest.update(np.ascontiguousarray(rows).data)
    digest.update(np.array([source.episode(i) for i in range(len(source))], np.int64).data)
    return digest.hexdigest()


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


def open_data(config: DatasetsConfig, horizon: int, tree: Tree | None = None) -> Data:
    """Open the data sets and split their episodes.

    Raises:
        ConfigError: unknown source or key, a first frame whose images or calibration are not what its spec
            says, or data sets of one robot that describe it differently.
    """
    sets: list[DataSet] = []
    splits: list[Split] = []
    for where, node in config.entries():
        place = tree.where(where) if tree else ""
        own = build_config(EntryConfig, {k: node[k] for k in OWN_KEYS if k in node}, where, tree)
        part = resolve_part("vla.sources", {k: v for k, v in node.items() if k not in OWN_KEYS}, where, tree)
        try:
            own.check()
            kept, held = split_episodes(part.cls.list_episodes(part.config), config.val_fraction)
            train: Source = part.cls(part.config, horizon, kept)
            val: Source | None = part.cls(part.config, horizon, held) if held else None
            for source in (train, val):
                if source is not None and own.embodiment is not None:
                    source.spec = replace(source.spec, embodiment=own.embodiment)
            # What a data set records is the same in every frame: better found here than in a worker.
            tries = 1 if config.on_bad_sample == "error" else TRIES
            check_views(first_readable(train.__getitem__, len(train), tries).observation, train.spec)
        except UserError as error:
            early = isinstance(error, BadDataError) and config.on_bad_sample == "quarantine"
            hint = (
                "; with cache: none, quarantine can pass over it"
                if early and node.get("cache") == "ram"
                else ""
            )
            raise ConfigError(f"{place}{where}: {error}{hint}") from error
        label = _label(own, node, [one.label for one in sets])
        sets.append(DataSet(label, own.weight, train, val, where))
        splits.append(Split(label, node.get("path"), kept, held))
    robots: dict[str, list[DataSet]] = {}
    for one in sets:
        robots.setdefault(one.embodiment, []).append(one)
    specs = {name: _spec(name, members, tree) for name, members in robots.items()}
    odd = [line for members in robots.values() for line in remarks(members)]
    return Data(sets, specs, [*odd, *leaks(splits)])


def _label(own: EntryConfig, node: Mapping[str, Any], taken: Sequence[str]) -> str:
    if own.label is not None:
        if own.label in taken:
            raise ConfigError(f"datasets.train: the label '{own.label}' is given twice")
        return own.label
    path = node.get("path")
    name = re.sub(r"[^\w.\-]", "_", Path(path).name if isinstance(path, str) else str(node["name"])) or "data"
    number, label = 1, name
    while label in taken:
        number += 1
        label = f"{name}_{number}"
    return label


def _spec(name: str, members: Sequence[DataSet], tree: Tree | None) -> RobotSpec:
    """The robot of ``members``, who must agree on it, with their statistics together."""
    first = members[0]
    for other in members[1:]:
        try:
            who = (first.where, other.where)
            check_observation(first.train.spec.observation, other.train.spec.observation, who)
            check_action(first.train.spec.action, other.train.spec.action, who)
            check_order(first, other)
        except SpecMismatch as error:
            place = tree.where(other.where) if tree else ""
            raise ConfigError(
                f"{place}data sets of one robot, '{name}', must agree: {error}; if they are of two robots, "
                f"give one another name, e.g. {other.where}.embodiment={name}_2"
            ) from error
    statistics = first.train.spec.statistics
    if len(members) > 1:
        statistics = _statistics([one.train for one in members])
    return replace(first.train.spec, statistics=statistics)


BLOCK = 1 << 16


def _statistics(sources: Sequence[Source]) -> NormStats:
    vectors = {"state": StreamingStats(), "action": StreamingStats()}
    for source in sources:
        if isinstance(source, TellsRows):
            for name, stats in vectors.items():
                rows = source.rows(name)
                for start in range(0, 0 if rows is None else len(rows), BLOCK):
                    assert rows is not None
                    stats.add(rows[start : start + BLOCK])
            continue
        for i in range(len(source)):
            state, chunk, _ = source.numeric(i)
            vectors["action"].add(chunk[:1])
            if state is not None:
                vectors["state"].add(state[None])
    return NormStats({name: stats.result() for name, stats in vectors.items() if stats.count})
