"""The vision loop of Qwen2.5-VL: window attention, all views of a batch at once.

M = B * V images, N patch tokens, U patches a merged token, C vision width, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vla_vlm.qwen.rope import VisionRope
from vla_vlm.qwen.vision import VisionRunner
from vla_vlm.qwen2_5_vl.windows import WindowLayout


class WindowedVision(VisionRunner):
    """Adds the window tables of one image size."""

    def __init__(
        self, config: Any, image_size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(config, image_size, mean, std)
        self.full = frozenset(config.fullatt_block_indexes)
        unit, stride = self.merge * self.merge, self.patch * self.merge
        windows = WindowLayout(self.grid, unit, config.window_size // stride)
        # Where every block sees the whole image there is nothing to reorder.
        all_full = self.full >= set(range(config.depth))
        self.windows = None if windows.identity or all_full else windows
        self.rope = VisionRope(config, self.patches, None if self.windows is None else self.windows.order)

    def forward(self, visual: Any, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """uint8 ``[M, 3, H, W]`` -> merged tokens ``[M, N / U, H]`` in raster order; no deepstack."""
        x_MNC = self.embed(visual, images)
        if self.windows is not None:
            x_MNC = self._reorder(x_MNC, self.windows.order)
        rope = self.rope()
        for i, block in enumerate(visual.blocks):
            windows = None if i in self.full else self.windows
            x_MNC = block(x_MNC, cu_seqlens=None, position_embeddings=rope, windows=windows)
        tokens = self.merged(visual.merger, x_MNC)
        return (tokens if self.windows is None else tokens[:, self.windows.restore]), ()

    def _reorder(self, x_MNC: Tensor, order: Tensor) -> Tensor:
        m, n, c = x_MNC.shape
        unit = self.merge * self.merge
        return x_MNC.view(m, n // unit, unit, c)[:, order].view(m, n, c)
