"""Positions of a row's tokens, counted at collate. S tokens of a row without padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Positions: TypeAlias = Callable[[NDArray[np.bool_], tuple[int, int]], NDArray[np.int64]]
"""From bool ``[S]`` (an image token or not) and the grid of an image to positions ``[P, S]``; picklable."""


def sequence_positions(is_image: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.int64]:
    """Positions ``[1, S]``: 0, 1, 2, ..., image tokens included. ``grid`` doesn't matter."""
    return np.arange(len(is_image), dtype=np.int64)[None]
