"""Vision towers: SigLIP (arXiv 2303.15343) and CLIP (arXiv 2103.00020), their layers run by our loop.

Layers, weights and names are transformers'; what nobody reads is not built: SigLIP's pooling head, CLIP's
last block and the norm behind it. M images, N patches, C width, p patch size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from vla_core.errors import ConfigError
from vla_core.shard import mark

from vla_vlm.common.owned import PatchRows, TowerEmbeddings, retype
from vla_vlm.common.pixels import CLIP_MEAN, CLIP_STD, ImageStats, Normalize, patchify

TowerName = Literal["siglip", "clip"]


class TowerRunner(nn.Module):
    """Runs a tower on images of its one size. Holds no parameters.

    Args:
        config: vision config of the tower.
        image_size: (height, width) of the images that will come.
        stats: of pixels in [0, 1].

    Attributes:
        grid: (rows, columns) of patches.

    Raises:
        ConfigError: the images are not of the tower's size.
    """

    def __init__(self, config: Any, image_size: tuple[int, int], stats: ImageStats) -> None:
        super().__init__()
        side = config.image_size
        if tuple(image_size) != (side, side):
            raise ConfigError(
                f"image size {image_size[0]}x{image_size[1]} isn't the vision tower's {side}x{side}; put "
                f"{{name: resize, height: {side}, width: {side}}} into framework.transforms"
            )
        self.patch = config.patch_size
        self.grid = (side // self.patch, side // self.patch)
        self.normalize = Normalize(stats.mean, stats.std)

    def embed(self, tower: Any, images: Tensor) -> Tensor:
        """Embedded patches ``[M, N, C]``, CLIP's class token before them."""
        tokens: Tensor = tower.embeddings(patchify(self.normalize(images), self.patch, 1))
        return tokens


class SiglipRunner(TowerRunner):
    """The last hidden state, after the final norm: what PaliGemma and MapAnythingLlava3D policies read."""

    def forward(self, tower: Any, images: Tensor) -> Tensor:
        """uint8 ``[M, 3, H, W]`` -> ``[M, N, C]``."""
        x = self.embed(tower, images)
        for layer in tower.encoder.layers:
            x = layer(x, attention_mask=None)
        return tower.post_layernorm(x)


class ClipRunner(TowerRunner):
    """The patches' hidden states before the last block, without the class token: what LLaVA reads."""

    def forward(self, tower: Any, images: Tensor) -> Tensor:
        """uint8 ``[M, 3, H, W]`` -> ``[M, N, C]``."""
        x = tower.pre_layrnorm(self.embed(tower, images))
        for layer in tower.encoder.layers:
            x = layer(x, attention_mask=None)
        return x[:, 1:]


@dataclass(frozen=True)
class TowerKind:
    """What tells one tower from another.

    Args:
        config_class, model_class: of transformers.
        runner: the loop.
        stats: image statistics where the weights bring none.
        published: hub id of the weights that LLaVA-3D policies use.
        skipped: blocks at the end that are not built.
        unused: prefixes of keys of a published file that have no place here.
    """

    config_class: Any
    model_class: Any
    runner: type[TowerRunner]
    stats: ImageStats
    published: str
    skipped: int
    unused: Sequence[str]


TOWERS: dict[str, TowerKind] = {
    "siglip": TowerKind(
        config_class=SiglipVisionConfig,
        model_class=SiglipVisionModel,
        runner=SiglipRunner,
        stats=ImageStats((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        published="google/siglip-so400m-patch14-224",
        skipped=0,
        unused=("text_model.", "logit_scale", "logit_bias", "head."),
    ),
    "clip": TowerKind(
        config_class=CLIPVisionConfig,
        model_class=CLIPVisionModel,
        runner=ClipRunner,
        stats=ImageStats(CLIP_MEAN, CLIP_STD),
        published="openai/clip-vit-large-patch14-336",
        skipped=1,
        unused=("text_model.", "logit_scale", "visual_projection.", "text_projection.", "post_layernorm."),
    ),
}


def build_tower(name: TowerName, config: Any, dtype: torch.dtype, attn_implementation: str) -> Any:
    """transformers' vision model without what its :class:`TowerRunner` does not run.

    Args:
        config: of the whole tower, as published.
    """
    kind = TOWERS[name]
    config = copy.deepcopy(config)
    config.num_hidden_layers -= kind.skipped
    config.vision_use_head = False
    tower = kind.model_class._from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    if name == "clip":
        del tower.post_layernorm
    own_tower(tower)
    return tower


def own_tower(tower: Any) -> None:
    """Make a tower of transformers one that a :class:`TowerRunner` runs."""
    retype(tower.embeddings, TowerEmbeddings)
    retype(tower.embeddings.patch_embedding, PatchRows)
    mark(tower.encoder.layers)
