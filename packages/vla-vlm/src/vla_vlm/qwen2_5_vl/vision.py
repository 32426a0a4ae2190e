"""The vision loop: images of one fixed size, all views of a batch at once.

M = B * V images, N patch tokens, U patches a merged token, C vision width, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vla_core.errors import ConfigError

from vla_vlm.qwen2_5_vl.pixels import Normalize, patchify
from vla_vlm.qwen2_5_vl.rope import VisionRope
from vla_vlm.qwen2_5_vl.stem import ConvStem
from vla_vlm.qwen2_5_vl.windows import WindowLayout


class VisionRunner(nn.Module):
    """Tables of one image size and the loop over the blocks of ``visual``. Holds no parameters.

    Args:
        config: ``vision_config`` of the model.
        image_size: (height, width) in pixels, multiples of ``patch_size * spatial_merge_size``.
        mean, std: of the image processor, for pixels in [0, 1].
    """

    def __init__(
        self, config: Any, image_size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        patch, merge = config.patch_size, config.spatial_merge_size
        stride = patch * merge
        if image_size[0] % stride or image_size[1] % stride:
            fit = tuple(max(1, round(side / stride)) * stride for side in image_size)
            raise ConfigError(
                f"image size {image_size[0]}x{image_size[1]} must be a multiple of {stride} "
                f"(patch {patch} x merge {merge}); resize to {fit[0]}x{fit[1]}"
            )
        self.patch, self.merge = patch, merge
        self.grid = (image_size[0] // stride, image_size[1] // stride)
        self.full = frozenset(config.fullatt_block_indexes)
        windows = WindowLayout(self.grid, merge * merge, config.window_size // stride)
        # Where every block sees the whole image there is nothing to reorder.
        all_full = self.full >= set(range(config.depth))
        self.windows = None if windows.identity or all_full else windows
        order = None if self.windows is None else self.windows.order
        self.rope = VisionRope(config, (self.grid[0] * merge, self.grid[1] * merge), order)
        self.normalize = Normalize(mean, std)

    def forward(self, visual: Any, images: Tensor) -> Tensor:
        """uint8 ``[M, 3, H, W]`` -> merged tokens ``[M, N / U, H]`` in raster order."""
        x_MNC = self._embed(visual, self.normalize(images))
        if self.windows is not None:
            x_MNC = self._reorder(x_MNC, self.windows.order)
        rope = self.rope()
        for i, block in enumerate(visual.blocks):
            windows = None if i in self.full else self.windows
            x_MNC = block(x_MNC, cu_seqlens=None, position_embeddings=rope, windows=windows)
        m = x_MNC.shape[0]
        # The merger folds the U patches of a token by a view, so rows of images stay apart.
        tokens = visual.merger(x_MNC).view(m, self.grid[0] * self.grid[1], -1)
        return tokens if self.windows is None else tokens[:, self.windows.restore]

    def _embed(self, visual: Any, pixels: Tensor) -> Tensor:
        embed = visual.patch_embed
        if isinstance(embed, ConvStem):
            return embed(pixels.to(next(embed.parameters()).dtype))
        weight = embed.proj.weight  # [C, 3, frames, p, p]
        # Both frames of a still image are equal, so their weights add up: half the multiplications.
        folded = weight.sum(dim=2, dtype=torch.float32).to(weight.dtype).flatten(1)
        return F.linear(patchify(pixels, self.patch, self.merge).to(weight.dtype), folded)

    def _reorder(self, x_MNC: Tensor, order: Tensor) -> Tensor:
        m, n, c = x_MNC.shape
        unit = self.merge * self.merge
        return x_MNC.view(m, n // unit, unit, c)[:, order].view(m, n, c)
