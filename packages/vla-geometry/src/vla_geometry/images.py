"""Images as the encoders want them: ImageNet-normalised, whole patches.

Shape legend: B rows, V views, M images, H, W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vla_core.errors import ConfigError, UserError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def unit_range(images: Tensor) -> Tensor:
    """uint8, or float in [0, 1] -> fp32 in [0, 1].

    The range follows from the dtype alone; it is never guessed from the values.
    """
    if images.dtype == torch.uint8:
        return images.float() / 255
    if images.is_floating_point():
        return images.float()
    raise UserError(f"images: dtype {images.dtype} must be torch.uint8, or floating point in [0, 1]")


def normalise(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images as :func:`unit_range` takes them, ``[M, 3, H, W]`` -> ImageNet-normalised of ``dtype``."""
    pixels = unit_range(images)
    # Plain numbers, a channel at a time: constants made here would be copied from the host on every call.
    channels = [(pixels[:, c] - MEAN[c]) / STD[c] for c in range(3)]
    return torch.stack(channels, dim=1).to(dtype)


def check_image_size(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """The patch grid ``(h, w)`` of an image ``(H, W)``.

    Raises:
        ConfigError: a side is not a multiple of the patch; names the nearest size that is.
    """
    nearest = tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)
    if nearest != tuple(image_size):
        raise ConfigError(
            f"image_size: {image_size[0]} x {image_size[1]} is not a multiple of patch_size {patch_size}; "
            f"resize the images to {nearest[0]} x {nearest[1]} or set geometry.patch_size"
        )
    return image_size[0] // patch_size, image_size[1] // patch_size


def check_images(images: Tensor, n_views: int, image_size: tuple[int, int]) -> None:
    """Raise :class:`UserError` unless ``images`` is ``[B, n_views, 3, *image_size]``."""
    height, width = image_size
    if images.ndim != 5 or tuple(images.shape[1:]) != (n_views, 3, height, width):
        raise UserError(
            f"images: shape {list(images.shape)} must be [B, {n_views}, 3, {height}, {width}]; "
            "build the encoder with this number of views and image size, or resize the images"
        )
