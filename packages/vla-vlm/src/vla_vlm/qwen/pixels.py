"""Images to what the patch embedding reads, as Qwen's image processor does without a resize.

M images, C channels, p patch size, N patches. The processor repeats a still image over the
temporal patch (2 frames); here the frame is kept once and the embedding adds its temporal weights.
"""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch: int, merge: int) -> Tensor:
    """``[M, C, H, W]`` -> ``[M, N, C * p * p]``, the patches of a merged token next to each other."""
    m, c, height, width = images.shape
    h, w = height // (patch * merge), width // (patch * merge)
    blocks = images.reshape(m, c, h, merge, patch, w, merge, patch)
    return blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(m, h * w * merge * merge, c * patch * patch)
