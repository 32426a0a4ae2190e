"""Answers that a backbone speaks token by token, and the heads that put them into words.

Shape legend: B rows, T action steps, A action dims, L answer ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

NO_LABEL = -100
"""In ``TokenFields.labels``: nothing to predict here (what cross-entropy ignores by default)."""


class AnswerIds(Protocol):
    """The words of an answer that the backbone speaks. Picklable and weightless.

    Answer ids are 0 to ``n_ids - 1``. Which tokens of a vocabulary they are is the backbone's affair: it
    adds those of ``tokens`` that it lacks, its collator writes them after the prompt, and its logits and
    decoder speak of answer ids again.

    Args:
        tokens: the text of each answer id, e.g. ``<robot_action_0>``.
        max_length: room for an answer, in ids; static, so it adds to the length of every training row.
    """

    @property
    def tokens(self) -> Sequence[str]: ...

    @property
    def max_length(self) -> int: ...

    def __call__(self, actions: NDArray[np.float32], mask: NDArray[np.bool_]) -> Sequence[int]:
        """The answer of one sample: ids for normalised ``actions [T, A]`` with bool ``mask [T, A]``.

        What is masked must not matter. Raises :class:`~vla_core.errors.UserError` when it needs more
        than ``max_length`` ids.
        """
        ...


class Decoder(Protocol):
    """Speaks after a prompt, one answer id a step, over keys and values kept from all before.

    ``logits [B, n_ids]`` are those of the next id. ``step(ids)`` takes what was chosen, long ``[B]``, and
    returns the logits of the one after it. Rows don't touch each other; a row that has said all it has to
    may be fed anything.
    """

    logits: Tensor

    def step(self, ids: Tensor) -> Tensor: ...


Chunks: TypeAlias = Callable[[], Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]]]
"""Yields (actions ``[T, A]``, mask ``[T, A]``) of every training row, as the model sees them."""


@runtime_checkable
class FittedHead(Protocol):
    """What an :class:`ActionHead` has besides, when it must see the data (a tokenizer of actions does).

    Its class learns before anything is built; right after ``build`` comes ``load_assets``, and only then are
    ``prompt`` and ``request`` read.
    """

    @classmethod
    def fit(cls, config: Any, chunks: Chunks | None, horizon: int, action_dim: int, directory: Path) -> None:
        """Learn from the training rows and write what :meth:`load_assets` reads into ``directory``.

        ``chunks`` None: there are none (a policy built without data).
        """
        ...

    def save_assets(self, directory: Path) -> None: ...

    def load_assets(self, directory: Path) -> None: ...
