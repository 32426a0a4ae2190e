"""How well a tokenizer does on chunks: length of answers and error of the round trip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vla_heads.fast.tokenizer import ActionTokenizer
from vla_heads.fast.transform import Floats, quantise


@dataclass(frozen=True)
class Report:
    """Of ``chunks`` chunks, in the units of normalised actions.

    Args:
        chunks: how many.
        values: numbers of a chunk, T * A.
        tokens_mean, tokens_max: length of an answer.
        error_mean, error_max: absolute error of an action after encoding and decoding.
        clipped: share of coefficients that ids cannot express.
        ids_used: different ids that occur.
    """

    chunks: int
    values: int
    tokens_mean: float
    tokens_max: int
    error_mean: float
    error_max: float
    clipped: float
    ids_used: int

    @property
    def compression(self) -> float:
        """Numbers an id: T * A over the mean length."""
        return self.values / self.tokens_mean


def measure(tokenizer: ActionTokenizer, chunks: Iterable[Floats]) -> Report:
    """Encode and decode each of ``chunks [T, A]`` (at least one)."""
    lengths, errors, largest, clipped, used = [], [], 0.0, [], set()
    for chunk in chunks:
        ids = tokenizer.encode(chunk)
        error = np.abs(tokenizer.decode(ids) - chunk)
        lengths.append(len(ids))
        errors.append(error.mean())
        largest = max(largest, float(error.max()))
        clipped.append(np.mean(tokenizer.coefficients(chunk) != quantise(chunk, tokenizer.scale)))
        used |= set(ids)
    return Report(
        chunks=len(lengths),
        values=tokenizer.horizon * tokenizer.action_dim,
        tokens_mean=float(np.mean(lengths)),
        tokens_max=max(lengths),
        error_mean=float(np.mean(errors)),
        error_max=largest,
        clipped=float(np.mean(clipped)),
        ids_used=len(used),
    )
