"""What a dataset provides to training. Entry points ``vla.sources``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from vla_core.specs import RobotSpec
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
