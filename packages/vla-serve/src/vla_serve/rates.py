"""Intervals of success rates: of one rate, of a mean over tasks, and of a difference over the same starts.

Shape legend: R runs (training seeds), T tasks, E episodes a task; an outcome is 1, 0 or NaN (did not end).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Outcomes = NDArray[np.float64]
Interval = tuple[float, float]

Z95 = 1.959963984540054
DRAWS = 10_000
_AT_ONCE = 2_000_000  # resampled outcomes in memory


def wilson(successes: int, trials: int) -> Interval:
    """The 95 % score interval of a rate (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    z2, rate = Z95**2, successes / trials
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == trials else centre + half


def mean_of_tasks(outcomes_RTE: Outcomes) -> float | None:
    """Every task counts the same, however many of its episodes ended; None without any."""
    cells = _mean(outcomes_RTE, axis=2)
    return None if np.isnan(cells).all() else float(np.nanmean(cells))


def bootstrap(
    outcomes_RTE: Outcomes, draws: int = DRAWS, seed: int = 0, *, paired: bool = False
) -> Interval | None:
    """95 % percentile interval of :func:`mean_of_tasks`; None without outcomes.

    Runs, tasks and episodes are drawn with replacement, one level inside the other (Efron and
    Tibshirani 1993), the same tasks and episodes for all runs: the interval is what other seeds and
    other tasks of the kind would give, which is wider than what these tasks alone would.

    Where all outcomes are alike, so is every draw: then Wilson's interval of their number, as if none
    depended on another.

    Args:
        outcomes_RTE: of episodes; or, ``paired``, the differences of two: -1, 0 or 1.
        draws: with replacement.
        seed: of the draws.
        paired: what the outcomes are.
    """
    known = outcomes_RTE[~np.isnan(outcomes_RTE)]
    if known.size == 0:
        return None
    if (known == known[0]).all():
        return _alike(float(known[0]), known.size, paired)
    r, t, e = outcomes_RTE.shape
    rng = np.random.default_rng(seed)
    block = max(1, _AT_ONCE // outcomes_RTE.size)
    means = []
    for first in range(0, draws, block):
        n = min(block, draws - first)
        runs = rng.integers(r, size=(n, r, 1, 1))
        tasks = rng.integers(t, size=(n, 1, t, 1))
        episodes = rng.integers(e, size=(n, 1, t, e))
        cells = _mean(outcomes_RTE[runs, tasks, episodes], axis=3)
        means.append(_mean(cells.reshape(n, -1), axis=1))
    low, high = np.nanpercentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def _alike(value: float, n: int, paired: bool) -> Interval:
    """Of ``n`` outcomes of one value. The others' share is at most ``other``, and those may go either way."""
    other = wilson(0, n)[1]
    if not paired:
        return (value - other, value) if value else (value, value + other)
    return max(-1.0, value - other * (1 + abs(value))), min(1.0, value + other * (1 + abs(value)))


def _mean(values: Outcomes, axis: int) -> Outcomes:
    """nanmean without the warning where all are NaN."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    mean: Outcomes = np.full(count.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean
