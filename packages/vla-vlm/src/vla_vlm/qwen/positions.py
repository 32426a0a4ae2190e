"""Multimodal rotary positions (mrope, arXiv 2409.12191), counted at collate.

Text advances all three axes (time, height, width) together; an image keeps its time, spreads over
height and width, and the text after it goes on from the larger of its sides.
S tokens of a row without padding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mrope_positions(is_image: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.int64]:
    """Positions ``[3, S]`` of one row.

    Args:
        is_image: bool ``[S]``; each image is a run of ``h * w`` (runs may touch no other image).
        grid: (h, w) tokens of an image.
    """
    h, w = grid
    out = np.empty((3, len(is_image)), dtype=np.int64)
    image = np.stack([np.zeros(h * w, np.int64), np.repeat(np.arange(h), w), np.tile(np.arange(w), h)])
    i = position = 0
    while i < len(is_image):
        if is_image[i]:
            out[:, i : i + h * w] = image + position
            position += max(h, w)
            i += h * w
        else:
            out[:, i] = position
            position += 1
            i += 1
    return out
