"""uint8 images to normalised pixels in patches, with the statistics that come with a model's weights.

M images, C channels, p patch size, N patches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_vlm.common.tables import Tables

PROCESSOR_FILE = "preprocessor_config.json"

# The statistics of CLIP's training images, which Qwen's processor uses.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageStats:
    """Mean and standard deviation of pixels in [0, 1], per channel."""

    mean: Sequence[float]
    std: Sequence[float]


def image_stats(own: ImageStats, name: str | None = None) -> ImageStats:
    """Image statistics beside the weights of a hub id or directory; ``own`` when it brings no processor."""
    from transformers.utils.hub import cached_file

    if name is None:
        return own
    path = cached_file(name, PROCESSOR_FILE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return own
    data = json.loads(Path(path).read_text("utf-8"))
    return ImageStats(data.get("image_mean", own.mean), data.get("image_std", own.std))


def save_image_stats(directory: Path, stats: ImageStats, kind: str | None = None, **sizes: int) -> None:
    """Write what :func:`image_stats` reads, as a processor of transformers' class ``kind`` with its sizes."""
    processor: dict[str, Any] = {} if kind is None else {"image_processor_type": kind}
    processor |= {"image_mean": list(stats.mean), "image_std": list(stats.std), **sizes}
    (directory / PROCESSOR_FILE).write_text(json.dumps(processor, indent=2) + "\n")


class Normalize(Tables):
    """Mean and standard deviation of the processor, in pixel values 0..255."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            self._table(name, torch.tensor(value, device="cpu").view(3, 1, 1) * 255.0)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[..., 3, H, W]``, or floating point in [0, 1], to float32 of about unit scale."""
        pixels = images.float()
        if images.dtype.is_floating_point:
            pixels = pixels * 255.0
        return (pixels - self.mean) / self.std


def patchify(images: Tensor, patch: int, merge: int) -> Tensor:
    """``[M, C, H, W]`` -> ``[M, N, C * p * p]``, the patches of a merged token next to each other.

    Qwen's processor repeats a still image over its temporal patch (2 frames); here the frame is kept once
    and the embedding adds its temporal weights.
    """
    m, c, height, width = images.shape
    h, w = height // (patch * merge), width // (patch * merge)
    blocks = images.reshape(m, c, h, merge, patch, w, merge, patch)
    return blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(m, h * w * merge * merge, c * patch * patch)
