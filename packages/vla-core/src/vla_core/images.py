"""The one resize of the project, used by training and serving alike."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

Scalar = TypeVar("Scalar", bound=np.generic)


Interpolation = Literal["bilinear", "bicubic"]


def resize(
    image: NDArray[np.uint8],
    height: int,
    width: int,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> NDArray[np.uint8]:
    """Resize uint8 ``[H, W, 3]`` to ``[height, width, 3]``; ``antialias=False`` is bilinear alone."""
    if image.shape[:2] == (height, width):
        return image
    if not antialias:
        mixed = _mix(_mix(image.astype(np.float32), height).swapaxes(0, 1), width).swapaxes(0, 1)
        return np.rint(mixed).astype(np.uint8)
    kernel = PILImage.Resampling[interpolation.upper()]
    return np.asarray(PILImage.fromarray(image).resize((width, height), kernel))


def _mix(x: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """``[N, ...]`` -> ``[size, ...]``: each row from the two nearest, centres at half-integers."""
    n = x.shape[0]
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    low = np.floor(at).astype(np.intp)
    share = (at - low).astype(np.float32).reshape(-1, *[1] * (x.ndim - 1))
    return x[low] * (1 - share) + x[np.minimum(low + 1, n - 1)] * share


def inside(old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the aspect ratio of ``old`` within ``new`` (height, width), rounded down.

    In floating point, as openpi computes it: now and then a pixel less than would fit.
    """
    ratio = max(old[0] / new[0], old[1] / new[1])
    return max(1, int(old[0] / ratio)), max(1, int(old[1] / ratio))


def margins(size: tuple[int, int], new: tuple[int, int]) -> tuple[int, int]:
    """Pixels above and to the left of a picture of ``size`` in the middle of one of ``new``."""
    return (new[0] - size[0]) // 2, (new[1] - size[1]) // 2


def pad(image: NDArray[Scalar], height: int, width: int) -> NDArray[Scalar]:
    """``[H, W, ...]`` in the middle of ``[height, width, ...]``, the rest 0."""
    if image.shape[:2] == (height, width):
        return image
    top, left = margins((image.shape[0], image.shape[1]), (height, width))
    out = np.zeros((height, width, *image.shape[2:]), image.dtype)
    out[top : top + image.shape[0], left : left + image.shape[1]] = image
    return out


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
    """Move the content by (dy, dx) pixels, repeating the border. Shape ``[H, W, ...]``; a new array."""
    height, width = image.shape[:2]
    dy, dx = max(1 - height, min(dy, height - 1)), max(1 - width, min(dx, width - 1))
    top, bottom, left, right = max(dy, 0), height + min(dy, 0), max(dx, 0), width + min(dx, 0)
    moved = np.empty_like(image)
    # Slices are copied as blocks; an index for every pixel takes forty times as long.
    moved[top:bottom, left:right] = image[top - dy : bottom - dy, left - dx : right - dx]
    moved[top:bottom, :left] = moved[top:bottom, left : left + 1]
    moved[top:bottom, right:] = moved[top:bottom, right - 1 : right]
    moved[:top] = moved[top]
    moved[bottom:] = moved[bottom - 1]
    return moved
