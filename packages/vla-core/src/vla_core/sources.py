"""What a dataset provides to training. Entry points ``vla.sources``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from vla_core.specs import GroupSpec, RobotSpec
from vla_core.types import Bool, Float, Sample


class Source(Protocol):
    """Random access to raw samples of one embodiment.

    ``Config`` is the YAML node. ``__init__(config, horizon, episodes)`` opens the data: ``horizon``
    is T, the number of action steps of a sample; ``episodes`` restricts it to some episode indices
    (None: all). ``spec`` describes cameras, state, actions (``horizon`` as given) and carries the
    statistics of the chosen episodes.
    """

    Config: ClassVar[type]
    spec: RobotSpec

    def __init__(self, config: Any, horizon: int, episodes: Sequence[int] | None = None) -> None: ...

    @classmethod
    def list_episodes(cls, config: Any) -> Sequence[int]:
        """All episode indices, without decoding anything."""
        ...

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def __getitem__(self, index: int) -> Sample: ...

    def numeric(self, index: int) -> tuple[Float | None, Float, Bool]:
        """State ``[S]`` or None, actions and mask ``[T, A]`` of a sample, without its images."""
        ...

    def episode(self, index: int) -> int:
        """Episode index of a sample."""
        ...


@runtime_checkable
class TellsChunkEnd(Protocol):
    """A source that can also say where a chunk leads, for auxiliaries that predict it (``Sample.future``)."""

    def chunk_end(self, index: int) -> int | None:
        """Index of the sample whose observation follows the last action of sample ``index``.

        None where the episode has no such frame: a chunk that reaches its end or beyond.
        """
        ...


@runtime_checkable
class TellsRows(Protocol):
    """A source that gives its numbers as whole columns, one row a sample: statistics read them in one go."""

    def rows(self, vector: str) -> Float | None:
        """``[F, D]`` of ``"state"`` or ``"action"`` in real units; None when the robot has none."""
        ...


@runtime_checkable
class TellsFingerprint(Protocol):
    """A source that can say what its numbers are without reading them all."""

    def fingerprint(self) -> str:
        """A text that changes whenever any number, episode, column or their order does.

        What is learned from the numbers is kept under it between runs.
        """
        ...


@runtime_checkable
class TellsDimNames(Protocol):
    """A source that knows what its makers call each dim, so that another order is noticed."""

    def dim_names(self, vector: str) -> Sequence[str]:
        """Of ``"state"`` or ``"action"``, of the present moment; "" where they say nothing."""
        ...


@runtime_checkable
class TellsNotes(Protocol):
    """A source with something that whoever trains on it should read, though it can be read."""

    notes: tuple[str, ...]
    """A line each."""


@lru_cache(maxsize=64)
def _deltas(groups: tuple[GroupSpec, ...]) -> Bool:
    return np.concatenate([np.full(g.dim, g.representation == "delta") for g in groups])


def action_chunk(
    rows: Float, index: int, stop: int, horizon: int, groups: tuple[GroupSpec, ...]
) -> tuple[Float, Bool]:
    """The T actions from row ``index`` on, and which of them the episode has.

    Past the episode's end the robot stays where its last command sent it, in the words of each group: an
    absolute target is held; a delta is 0, for a repeated one would go on moving; a relative offset is
    held, as all offsets of a chunk count from the same present state. The mask is False there, so
    none of this is learned.

    Args:
        rows: actions ``[F, A]`` in real units.
        index: first row of the chunk.
        stop: the row after the episode's last.
        horizon: T.
        groups: of the action spec, A dims together.

    Returns:
        Actions ``[T, A]`` and mask ``[T, A]``.
    """
    if index + horizon <= stop:
        whole = rows[index : index + horizon].copy()
        return whole, np.ones(whole.shape, np.bool_)
    steps = index + np.arange(horizon)
    real = steps < stop
    actions: Float = rows[np.minimum(steps, stop - 1)]
    actions[np.ix_(~real, _deltas(groups))] = 0
    return actions, np.repeat(real[:, None], actions.shape[1], axis=1)
