"""Florence-2 behind the ``VisionLanguageModel`` protocol: its vision tower and its text encoder.

Shape legend: B rows, V views, M = B V images, N places of an image, S tokens, H hidden size, C vision
width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.models.florence2.configuration_florence2 import Florence2Config
from vla_core.batch import Role
from vla_core.errors import ConfigError
from vla_core.interfaces import PromptSpec, TextTokens, VisualTokens, VLMDims, VLMOutput, VLMRequest
from vla_core.shard import mark

from vla_vlm.common import tokenizer
from vla_vlm.common.collator import PromptCollator
from vla_vlm.common.kernels import for_kernel
from vla_vlm.common.model import DecoderVLM
from vla_vlm.common.owned import OffsetPositions, retype
from vla_vlm.common.pixels import ImageStats, Normalize, image_stats, save_image_stats
from vla_vlm.common.positions import sequence_positions
from vla_vlm.common.reserved import overwrite, where
from vla_vlm.common.text import check_layers
from vla_vlm.florence2 import shapes as loading
from vla_vlm.florence2.config import Florence2VLMConfig

STATS = ImageStats((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass
class Florence2Tokens(VisualTokens):
    """With the mean of each image as one more token ``[B, V, H]``, which goes before its places."""

    means: Tensor | None = None


class Florence2(DecoderVLM):
    """Florence-2 without its text decoder; ``model`` is transformers' ``Florence2Model``.

    Made by :meth:`build`.

    Hidden states are the encoder's: 0 is what its first layer reads, and there is no norm after the last.
    All tokens attend to each other. Nothing can be spoken: a head that speaks is refused.
    """

    Config: ClassVar[type] = Florence2VLMConfig

    def __init__(
        self,
        config: Florence2VLMConfig,
        shapes: Any,
        model: Any,
        tokens: Tokenizer,
        n_views: int,
        image_size: tuple[int, int],
        stats: ImageStats,
    ) -> None:
        super().__init__()
        self.config, self.shapes, self.tokenizer, self.stats = config, shapes, tokens, stats
        self.n_views, self.image_size = n_views, image_size
        self.special = loading.special_ids(tokens, config.base_vlm)
        text, vision = shapes.text_config, shapes.vision_config
        if tokens.get_vocab_size() > text.vocab_size:
            raise ConfigError(
                f"base_vlm '{config.base_vlm}': the tokenizer has {tokens.get_vocab_size()} entries, "
                f"the model only {text.vocab_size}; they don't belong together"
            )
        self.positions = sequence_positions
        self.normalize = Normalize(stats.mean, stats.std)
        self.model = model
        retype(self.language_model.embed_positions, OffsetPositions)
        mark([*chain.from_iterable(model.vision_tower.blocks), *self.language_model.layers])
        self.dims = VLMDims(text.d_model, text.encoder_layers, _grid(image_size, vision))

    @property
    def language_model(self) -> Any:
        """The text encoder: ``embed_tokens``, ``embed_positions``, ``layernorm_embedding``, ``layers``."""
        return self.model.language_model.encoder

    def collator(self, prompt: PromptSpec) -> PromptCollator:
        """The prompt writer of this model for ``prompt``; holds no reference to the module.

        Raises:
            ConfigError: longer prompts than the model has positions.
        """
        collator = super().collator(prompt)
        most = self.shapes.text_config.max_position_embeddings
        if collator.length > most:
            raise ConfigError(
                f"vlm.max_text_tokens: a prompt of {collator.length} tokens, "
                f"{collator.counts['image']} of them of {self.n_views} images, is longer than florence2's "
                f"{most} positions; lower it, or resize the images"
            )
        return collator

    def encode(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """uint8 ``[M, 3, H, W]`` -> places ``[M, N, H]``, and the mean of each image ``[M, 1, H]``."""
        tower = self.model.vision_tower
        x = self.normalize(images).to(tower.convs[0].conv.weight.dtype)
        for conv, blocks in zip(tower.convs, tower.blocks, strict=True):
            x = conv(x)
            for block in blocks:
                x = block(x)
        tokens = self.model.multi_modal_projector(x)
        return tokens[:, 1:], (tokens[:, :1],)

    def embed_images(self, images: Tensor, view_mask: Tensor) -> Florence2Tokens:
        """uint8 (or [0, 1]) images ``[B, V, 3, H, W]`` -> tokens ``[B, V * h * w, H]`` in view order.

        Raises:
            ValueError: another number of views or another size than the model was built for.
        """
        self.check_images(images)
        b, (h, w) = images.shape[0], self.dims.grid
        tokens, (means,) = self.encode(images.flatten(0, 1))
        return Florence2Tokens(
            tokens=tokens.reshape(b, self.n_views * h * w, -1),
            mask=view_mask.repeat_interleave(h * w, dim=1),
            grid=(self.n_views, h, w),
            means=means.view(b, self.n_views, -1),
        )

    def forward(
        self, text: TextTokens, visual: VisualTokens, prefix: Tensor | None, request: VLMRequest
    ) -> VLMOutput:
        """Run the encoder up to the highest requested layer.

        Raises:
            ValueError: see the base; or the visual tokens are not those of :meth:`embed_images`.
        """
        if not isinstance(visual, Florence2Tokens) or visual.means is None:
            raise ValueError(
                "florence2 needs its own visual tokens; a fusion returns replace(visual, tokens=...)"
            )
        n = visual.grid[1] * visual.grid[2]
        # The token before an image's first place is that of its mean.
        column = where(text.fields.roles, Role.IMAGE, visual.tokens.shape[1])[:, ::n] - 1
        text = replace(
            text,
            embeds=overwrite(text.embeds, column, visual.means),
            mask=text.mask.scatter(1, column, visual.mask[:, ::n]),
        )
        return super().forward(text, visual, prefix, request)

    def unreached(self, request: VLMRequest) -> list[nn.Module]:
        """See the base; there is no final norm."""
        return list(self.language_model.layers[max(request.layers, default=0) :])

    def run(
        self,
        embeds_BSH: Tensor,
        valid_BS: Tensor,
        position_ids: Tensor,
        layers: Sequence[int],
        kv_layers: Sequence[int] = (),
        **kwargs: Any,
    ) -> tuple[dict[int, Tensor], dict[int, tuple[Tensor, Tensor]]]:
        """Hidden states of the requested ``layers``; no keys and values."""
        encoder, wanted = self.language_model, set(layers)
        check_layers(layers, len(encoder.layers))
        x = embeds_BSH + encoder.embed_positions(position_ids[0])
        x = encoder.layernorm_embedding(x)
        x = F.dropout(x, encoder.dropout, self.training)
        hidden = {0: x} if 0 in wanted else {}
        mask = for_kernel(valid_BS[:, None, None], encoder.config._attn_implementation, x.dtype)
        for i in range(1, max(wanted, default=0) + 1):
            x = encoder.layers[i - 1](x, mask)
            if i in wanted:
                hidden[i] = x
        return hidden, {}

    @classmethod
    def build(
        cls, config: Any, n_views: int, image_size: tuple[int, int], assets: Path | None = None
    ) -> Florence2:
        """Make the module (see the protocol for ``assets``).

        Raises:
            ConfigError: the model can't be found or loaded, or the image size doesn't fit.
        """
        name = config.base_vlm
        if assets is not None:
            if not (assets / "config.json").is_file():
                raise ConfigError(f"{assets / 'config.json'}: no such file; save the checkpoint again")
            shapes, tokens = loading.hub_shapes(str(assets)), tokenizer.from_directory(assets)
            stats, model = (
                image_stats(STATS, str(assets)),
                loading.random_model(shapes, config, initialise=False),
            )
        elif config.named_size:
            tokens, stats = loading.shipped_tokenizer(), STATS
            shapes = loading.named_shapes(name, config, tokens)
            model = loading.random_model(shapes, config)
        else:
            shapes = loading.hub_shapes(name)
            tokens, stats = tokenizer.from_pretrained(name), image_stats(STATS, name)
            model = (
                loading.pretrained_model(config)
                if config.pretrained
                else loading.random_model(shapes, config)
            )
        return cls(config, shapes, model, tokens, n_views, image_size, stats)

    def save_assets(self, directory: Path) -> None:
        """Write architecture, tokenizer and image statistics: with the weights all that is needed offline."""
        directory.mkdir(parents=True, exist_ok=True)
        Florence2Config.from_dict(self.shapes.to_dict()).save_pretrained(directory)
        self.tokenizer.save(str(directory / tokenizer.TOKENIZER_FILE))
        save_image_stats(directory, self.stats, "CLIPImageProcessor")


def _grid(image_size: tuple[int, int], vision: Any) -> tuple[int, int]:
    stride = math.prod(vision.patch_stride)
    if image_size[0] % stride or image_size[1] % stride:
        fit = tuple(max(1, round(side / stride)) * stride for side in image_size)
        raise ConfigError(
            f"image size {image_size[0]}x{image_size[1]} must be a multiple of {stride}; "
            f"resize to {fit[0]}x{fit[1]}"
        )
    grid = (image_size[0] // stride, image_size[1] // stride)
    if max(grid) > vision.max_position_embeddings:
        raise ConfigError(
            f"image size {image_size[0]}x{image_size[1]} has {grid[0]}x{grid[1]} tokens, the model has "
            f"positions for {vision.max_position_embeddings} a side; resize to a smaller size"
        )
    return grid
