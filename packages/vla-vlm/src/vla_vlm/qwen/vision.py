"""What the vision loops share: images of one fixed size, checked, normalised and embedded in patches.

M = B * V images, N patch tokens, U patches a merged token, C vision width, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from vla_core.errors import ConfigError

from vla_vlm.common.pixels import Normalize, patchify
from vla_vlm.qwen.stem import ConvStem


class VisionRunner(nn.Module):
    """Tables of one image size and the loop over the blocks of ``visual``. Holds no parameters.

    The loop is a subclass's ``forward(visual, images)``: uint8 ``[M, 3, H, W]`` to merged tokens
    ``[M, N / U, H]`` in raster order and a tuple of such features for deepstack.

    Args:
        config: ``vision_config`` of the model.
        image_size: (height, width) in pixels, multiples of ``patch_size * spatial_merge_size``.
        mean, std: of the image processor, for pixels in [0, 1].

    Attributes:
        grid: (rows, columns) of merged tokens; ``patches`` of patches.
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
        self.patches = (self.grid[0] * merge, self.grid[1] * merge)
        self.normalize = Normalize(mean, std)

    def embed(self, visual: Any, images: Tensor) -> Tensor:
        """Patch tokens ``[M, N, C]``, those of a merged token next to each other."""
        pixels, embed = self.normalize(images), visual.patch_embed
        if isinstance(embed, ConvStem):
            return embed(pixels.to(next(embed.parameters()).dtype))
        tokens: Tensor = embed.proj(patchify(pixels, self.patch, self.merge))
        return tokens

    def merged(self, merger: Any, x_MNC: Tensor) -> Tensor:
        """Tokens ``[M, N / U, H]``: a merger folds the U patches of a token by a view."""
        return merger(x_MNC).view(x_MNC.shape[0], self.grid[0] * self.grid[1], -1)
