"""The vision loop of Qwen3-VL: learned positions, full attention, features for deepstack.

M = B * V images, N patch tokens, U patches a merged token, C vision width, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vla_vlm.common.tables import Tables
from vla_vlm.qwen.rope import VisionRope, patch_positions
from vla_vlm.qwen.vision import VisionRunner


class PositionGrid(Tables):
    """Bilinear interpolation of a square grid of learned positions, for one patch grid.

    Args:
        side: of the square grid; its corners stay the corners of the image.
        patches: (rows, columns) of patches.
        merge: patches a side of a merged token.
    """

    index: Tensor
    weight: Tensor

    def __init__(self, side: int, patches: tuple[int, int], merge: int) -> None:
        super().__init__()
        with torch.device("cpu"):
            position = patch_positions(patches, merge).view(-1, 2)
            steps = torch.tensor([max(1, n - 1) for n in patches])
            where = position * (side - 1) / steps  # [N, 2] in grid units
            low = where.floor()
            part = where - low
            low = low.long()
            near = torch.stack([low, (low + 1).clamp(max=side - 1)])  # [2, N, 2]
            share = torch.stack([1 - part, part])
            index = near[:, None, :, 0] * side + near[None, :, :, 1]
            weight = share[:, None, :, 0] * share[None, :, :, 1]
        self._table("index", index.flatten(0, 1))
        self._table("weight", weight.flatten(0, 1)[..., None])

    def forward(self, embedding: Any, dtype: torch.dtype) -> Tensor:
        """``[N, C]``: four neighbours of each patch from ``embedding``, weighted in float32."""
        return (embedding(self.index) * self.weight).sum(dim=0).to(dtype)


class DeepstackVision(VisionRunner):
    """Adds learned positions, and keeps what some blocks put out for the language model."""

    def __init__(
        self, config: Any, image_size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(config, image_size, mean, std)
        self.rope = VisionRope(config, self.patches)
        self.positions = PositionGrid(int(config.num_position_embeddings**0.5), self.patches, self.merge)
        self.taps = {block: i for i, block in enumerate(config.deepstack_visual_indexes)}

    def forward(self, visual: Any, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """uint8 ``[M, 3, H, W]`` -> merged tokens ``[M, N / U, H]`` in raster order, and deepstack's."""
        x_MNC = self.embed(visual, images)
        x_MNC = x_MNC + self.positions(visual.pos_embed, x_MNC.dtype)
        rope, deepstack = self.rope(), []
        for i, block in enumerate(visual.blocks):
            x_MNC = block(x_MNC, cu_seqlens=None, position_embeddings=rope)
            if i in self.taps:
                deepstack.append(self.merged(visual.deepstack_merger_list[self.taps[i]], x_MNC))
        return self.merged(visual.merger, x_MNC), tuple(deepstack)
