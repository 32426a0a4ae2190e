"""Normalisation statistics of a source."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import UserError
from vla_core.stats import NormStats, VectorStats


class NumericSource(Protocol):
    """What statistics are computed from: all rows, without any decoding of images."""

    def rows(self, vector: str) -> NDArray[np.float32] | None:
        """``[F, D]`` of ``"state"`` or ``"action"``; None when the robot has none."""
        ...


def compute_norm_stats(source: NumericSource) -> NormStats:
    """Mean, std, min, max and 1 %/99 % quantiles of ``state`` and ``action`` over the source's frames.

    Raises:
        UserError: a value is NaN or infinite.
    """
    vectors = {}
    for name in ("state", "action"):
        rows = source.rows(name)
        if rows is None:
            continue
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise UserError(
                f"{name}: {int(bad.sum())} frames hold NaN or infinity (the first is frame "
                f"{int(bad.argmax())} of the chosen episodes); leave those episodes out or repair them"
            )
        vectors[name] = VectorStats.from_rows(rows)
    return NormStats(vectors)
