"""The one resize of the project, used by training and serving alike."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

Scalar = TypeVar("Scalar", bound=np.generic)


Interpolation = Literal["bilinear", "bicubic"]


def resize(
    image: NDArray[np.uint8], height: int, width: int, interpolation: Interpolation = "bilinear"
) -> NDArray[np.uint8]:
    """Resize uint8 ``[H, W, 3]`` to ``[height, width, 3]``, with antialiasing."""
    if image.shape[:2] == (height, width):
        return image
    kernel = PILImage.Resampling[interpolation.upper()]
    return np.asarray(PILImage.fromarray(image).resize((width, height), kernel))


def resize_depth(depth: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize float32 ``[H, W]`` metres by nearest neighbour: depths across an edge never mix."""
    if depth.shape == (height, width):
        return depth
    rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(np.intp)
    cols = ((np.arange(width) + 0.5) * depth.shape[1] / width).astype(np.intp)
    return depth[rows[:, None], cols[None, :]]


def resize_intrinsics(
    intrinsics: NDArray[np.float32], old: tuple[int, int], new: tuple[int, int]
) -> NDArray[np.float32]:
    """Intrinsics ``[3, 3]`` in pixels after a resize from ``old`` to ``new`` (height, width).

    Pixel centres are at half-integers, so the principal point scales about the image corner.
    """
    scale_y, scale_x = new[0] / old[0], new[1] / old[1]
    out = intrinsics.astype(np.float32).copy()
    out[0] *= scale_x
    out[1] *= scale_y
    return out


def shift(image: NDArray[Scalar], dy: int, dx: int) -> NDArray[Scalar]:
    """Move the content by (dy, dx) pixels, repeating the border. Shape ``[H, W, ...]``."""
    rows = np.clip(np.arange(image.shape[0]) - dy, 0, image.shape[0] - 1)
    cols = np.clip(np.arange(image.shape[1]) - dx, 0, image.shape[1] - 1)
    return image[rows[:, None], cols[None, :]]
