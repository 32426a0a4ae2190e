"""uint8 images to what the patch embedding reads, as Qwen's image processor does without a resize.

M images, C channels, p patch size, N patches. The processor repeats a still image over the
temporal patch (2 frames); here the frame is kept once and the embedding adds its temporal weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_vlm.qwen.tables import Tables

# The statistics of CLIP's training images, which Qwen's processor uses.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


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
    """``[M, C, H, W]`` -> ``[M, N, C * p * p]``, the patches of a merged token next to each other."""
    m, c, height, width = images.shape
    h, w = height // (patch * merge), width // (patch * merge)
    blocks = images.reshape(m, c, h, merge, patch, w, merge, patch)
    return blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(m, h * w * merge * merge, c * patch * patch)
