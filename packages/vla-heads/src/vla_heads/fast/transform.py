"""From an action chunk to whole numbers and back: a cosine transform along time, rounded.

Shape legend: T action steps, A action dims.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@cache
def cosines(horizon: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II ``[T, T]``: ``cosines @ actions`` are its coefficients, slow ones first."""
    t = np.arange(horizon)
    matrix = np.cos(np.pi / horizon * (t + 0.5) * t[:, None]) * np.sqrt(2 / horizon)
    matrix[0] /= np.sqrt(2)
    return matrix


def quantise(actions: Floats, scale: float) -> Ints:
    """Rounded coefficients ``[T, A]`` of ``actions [T, A]``.

    A coefficient is off by at most 1 / (2 scale), hence an action by at most sqrt(T) / (2 scale).
    """
    return np.round(cosines(len(actions)) @ actions.astype(np.float64) * scale).astype(np.int64)


def restore(coefficients: Ints, scale: float) -> NDArray[np.float32]:
    """Actions ``[T, A]`` of coefficients ``[T, A]``."""
    return (cosines(len(coefficients)).T @ (coefficients / scale)).astype(np.float32)


def hold(actions: Floats, mask: NDArray[np.bool_], horizon: int, dim: int) -> NDArray[np.float64]:
    """A whole chunk ``[horizon, dim]`` in which what is masked follows from what is not.

    A masked step repeats the last valid one of its dim (the first, before any), for a constant is what a
    cosine transform needs least for; a dim without a valid step, and dims beyond ``actions``, are 0.
    """
    t, a = actions.shape
    valid = np.zeros((horizon, dim), np.bool_)
    valid[:t, :a] = mask
    out = np.zeros((horizon, dim))
    out[:t, :a] = np.where(mask, actions, 0)
    last = np.maximum.accumulate(np.where(valid, np.arange(horizon)[:, None], -1), axis=0)
    source = np.where(last >= 0, last, valid.argmax(axis=0))
    held: NDArray[np.float64] = np.take_along_axis(out, source, axis=0)
    return held
