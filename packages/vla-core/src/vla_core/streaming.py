"""Statistics of more rows than memory holds: one pass, blocks of rows, a stated error of the quantiles.

Up to :data:`EXACT` rows everything is exact (it is :meth:`VectorStats.from_rows`). Beyond, mean, standard
deviation, min and max stay exact up to rounding, and the quantiles come from a sketch of Manku, Rajagopalan
and Lindsay's kind (Approximate Medians, SIGMOD 1998): a full buffer is sorted and every other value of it
goes on with twice the weight. Shape legend: N rows, D dims.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_core.stats import VectorStats

EXACT = 1 << 20
"""Rows that are kept whole."""
BUFFER = 1 << 16
"""Values a level of the sketch holds for each dim."""
QUANTILES = (0.01, 0.99)


class StreamingStats:
    """Statistics of rows that come in blocks.

    Args:
        exact: rows up to which nothing is approximated.
        buffer: values of a level; memory is about ``4 D max(exact, buffer log2(N / buffer))`` bytes.
    """

    def __init__(self, exact: int = EXACT, buffer: int = BUFFER) -> None:
        if buffer < 2 or buffer % 2:
            raise ValueError(f"buffer must be even and at least 2, got {buffer}")
        self.exact, self.buffer, self.count = exact, buffer, 0
        self._waiting: list[NDArray[np.floating[Any]]] = []
        self._n_waiting = 0
        self._levels: list[_Level] = []
        self._mean = self._squares = self._low = self._high = np.zeros(0)

    def add(self, rows: NDArray[np.floating[Any]]) -> None:
        """Rows ``[N, D]``, N >= 0."""
        if not len(rows):
            return
        self.count += len(rows)
        self._waiting.append(np.array(rows))
        self._n_waiting += len(rows)
        if self.count > self.exact and self._n_waiting >= self.buffer:
            self._flush()

    @property
    def rank_error(self) -> float:
        """How far a quantile's rank may be off at most, as a share of the rows; 0 where they are exact."""
        if not self._levels:
            return 0.0
        # Halving values of weight w moves a rank by w at most, and happens N / (w buffer) times at most.
        halvings = len(self._levels) - 1
        return halvings / self.buffer + 2**halvings / self.count

    def result(self) -> VectorStats:
        """The statistics of all rows so far (one at least)."""
        if not self._levels:
            return VectorStats.from_rows(np.concatenate(self._waiting) if self._waiting else np.zeros((0, 0)))
        if self._waiting:
            self._flush()
        q01, q99 = (self._quantile(q) for q in QUANTILES)
        std = np.sqrt(self._squares / self.count)
        return VectorStats(self._mean, std, self._low, self._high, q01, q99, self.count)

    def _flush(self) -> None:
        rows, self._waiting, self._n_waiting = np.concatenate(self._waiting), [], 0
        for start in range(0, len(rows), self.buffer):
            self._merge(rows[start : start + self.buffer])

    def _merge(self, rows: NDArray[np.floating[Any]]) -> None:
        """Chan, Golub and LeVeque's update of mean and squares, then the sketch."""
        block = np.asarray(rows, np.float64)
        n, mean = len(block), block.mean(0)
        squares = ((block - mean) ** 2).sum(0)
        if not self._levels:
            self._levels.append(_Level())
            self._merged, self._mean, self._squares = n, mean, squares
            self._low, self._high = block.min(0), block.max(0)
        else:
            total, delta = self._merged + n, mean - self._mean
            self._squares = self._squares + squares + delta**2 * (self._merged * n / total)
            self._mean = self._mean + delta * (n / total)
            self._merged = total
            self._low, self._high = np.minimum(self._low, block.min(0)), np.maximum(self._high, block.max(0))
        self._push(0, np.asarray(block, np.float32))

    def _push(self, number: int, values: NDArray[np.float32]) -> None:
        if number == len(self._levels):
            self._levels.append(_Level())
        level = self._levels[number]
        level.parts.append(values)
        level.size += len(values)
        if level.size < self.buffer:
            return
        held = np.concatenate(level.parts)
        whole, left = held[: self.buffer], held[self.buffer :]
        level.parts, level.size = [left] if len(left) else [], len(left)
        # Odd and even places in turn: their errors cancel.
        level.odd = not level.odd
        self._push(number + 1, np.sort(whole, axis=0)[int(level.odd) :: 2])

    def _quantile(self, q: float) -> NDArray[np.float64]:
        parts = [(np.concatenate(level.parts), 2**i) for i, level in enumerate(self._levels) if level.parts]
        values = np.concatenate([part for part, _ in parts])
        weights = np.repeat([float(w) for _, w in parts], [len(part) for part, _ in parts])
        order = np.argsort(values, axis=0)
        ranks = np.cumsum(weights[order], axis=0)
        place = (ranks < q * self.count).sum(0).clip(max=len(values) - 1)
        chosen = np.take_along_axis(values, np.take_along_axis(order, place[None], 0), 0)[0]
        return np.asarray(chosen, np.float64)


class StepStats:
    """Statistics of each step of chunks on its own; an episode's end makes chunks shorter.

    Args:
        exact: rows of a step up to which nothing is approximated; each step keeps its own.
    """

    def __init__(self, exact: int = EXACT >> 3) -> None:
        self._exact, self._steps = exact, list[StreamingStats]()
        self._waiting: list[NDArray[np.floating[Any]]] = []

    def add(self, chunk: NDArray[np.floating[Any]]) -> None:
        """The first steps of a chunk, ``[t, D]`` with t up to T."""
        self._waiting.append(chunk)
        if len(self._waiting) == 1 << 12:
            self._flush()

    def result(self, horizon: int) -> VectorStats:
        """Of ``[horizon * D]`` dims, step by step; ``count`` is that of the first step (one row at least).

        Steps that no chunk reaches get the statistics of the last that one does.
        """
        self._flush()
        each = [stats.result() for stats in self._steps]
        each += each[-1:] * (horizon - len(each))
        parts = ("mean", "std", "min", "max", "q01", "q99")
        joined = {name: np.concatenate([getattr(one, name) for one in each]) for name in parts}
        return VectorStats(**joined, count=each[0].count)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for step in range(max((len(chunk) for chunk in waiting), default=0)):
            if step == len(self._steps):
                self._steps.append(StreamingStats(self._exact))
            self._steps[step].add(np.stack([chunk[step] for chunk in waiting if len(chunk) > step]))


class _Level:
    """Values of one weight that wait to be halved."""

    def __init__(self) -> None:
        self.parts: list[NDArray[np.float32]] = []
        self.size = 0
        self.odd = True
