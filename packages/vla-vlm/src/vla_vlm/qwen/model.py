"""Qwen's models behind the ``VisionLanguageModel`` protocol: how they are built and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from vla_core.batch import ConversationBatch
from vla_core.errors import ConfigError
from vla_core.interfaces import VLMDims, VLMOutput
from vla_core.shard import mark

from vla_vlm.common import tokenizer
from vla_vlm.common.aligned import align
from vla_vlm.common.converse import converse
from vla_vlm.common.kernels import FLASH
from vla_vlm.common.model import DecoderVLM
from vla_vlm.common.owned import LanguageHead, StillPatchRows, retype
from vla_vlm.common.pixels import ImageStats, image_stats, save_image_stats
from vla_vlm.common.rope import TextRope
from vla_vlm.qwen import loading
from vla_vlm.qwen.attention import replace_vision_attention
from vla_vlm.qwen.chat import ChatCollator, ChatIds
from vla_vlm.qwen.config import QwenConfig
from vla_vlm.qwen.family import Family
from vla_vlm.qwen.positions import mrope_positions
from vla_vlm.qwen.stem import ConvStem
from vla_vlm.qwen.tokenizer import special_ids


class QwenVLM(DecoderVLM):
    """``model`` is the model of transformers: ``model.visual`` and ``model.language_model``.

    Parameters carry the names of its ``ForConditionalGeneration``, without the ``lm_head`` unless an
    answer needs one that is not tied to the embedding. A subclass names its ``Config`` and
    :class:`~.family.Family`; it is made by :meth:`build`.
    """

    family: ClassVar[Family]
    config: QwenConfig
    published = False

    def __init__(
        self,
        config: QwenConfig,
        model: Any,
        tokens: Tokenizer,
        n_views: int,
        image_size: tuple[int, int],
        stats: ImageStats,
    ) -> None:
        super().__init__()
        self.config, self.tokenizer, self.stats = config, tokens, stats
        self.n_views, self.image_size = n_views, image_size
        self.special = special_ids(tokens, config.base_vlm)
        if tokens.get_vocab_size() > model.config.text_config.vocab_size:
            raise ConfigError(
                f"base_vlm '{config.base_vlm}': the tokenizer has {tokens.get_vocab_size()} entries, "
                f"the model only {model.config.text_config.vocab_size}; they don't belong together"
            )
        vision = model.config.vision_config
        # Built before the weights are touched: it checks the image size.
        self.vision_runner = self.family.vision(vision, image_size, stats.mean, stats.std)
        self.rope = TextRope(model.config.text_config, self.family.rope_axes)
        self.positions = mrope_positions
        if config.vision == "conv_vit":
            stem = ConvStem(vision.hidden_size, vision.patch_size, vision.spatial_merge_size)
            model.visual.patch_embed = stem.to(getattr(torch, config.dtype))
        else:
            retype(model.visual.patch_embed.proj, StillPatchRows)
        replace_vision_attention(model.visual)
        align(model.visual)
        mark([*model.visual.blocks, *model.language_model.layers])
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model = model
        self.dims = VLMDims(
            hidden_size=model.config.text_config.hidden_size,
            n_layers=model.config.text_config.num_hidden_layers,
            grid=self.vision_runner.grid,
            decoder=True,
        )

    @property
    def language_model(self) -> Any:
        """``model.language_model``."""
        return self.model.language_model

    def encode(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Through ``model.visual``: merged tokens, and those of early features where there are some."""
        tokens, deepstack = self.vision_runner(self.model.visual, images)
        return tokens, deepstack

    def make_head(self) -> LanguageHead | None:
        """Tied to the embedding, published, or random where the model is (a checkpoint fills it later)."""
        if self.model.config.tie_word_embeddings:
            return None
        weight = self.language_model.embed_tokens.weight
        rows, width = weight.shape
        head = LanguageHead(width, rows, bias=False, device=weight.device, dtype=weight.dtype)
        if self.published:
            loading.read_head(head, self.config.base_vlm)
        else:
            nn.init.normal_(head.weight, std=self.language_model.config.initializer_range)
        return head

    @classmethod
    def build(
        cls, config: Any, n_views: int, image_size: tuple[int, int], assets: Path | None = None
    ) -> Self:
        """Make the module (see the protocol for ``assets``).

        Raises:
            ConfigError: the model can't be found or loaded, or the image size doesn't fit its grid.
        """
        family, name = cls.family, config.base_vlm
        stats = own = ImageStats(family.mean, family.std)
        if assets is not None:
            if not (assets / "config.json").is_file():
                raise ConfigError(f"{assets / 'config.json'}: no such file; save the checkpoint again")
            shapes = loading.hub_shapes(family, str(assets), config.SIZES)
            tokens, stats = tokenizer.from_directory(assets), image_stats(own, str(assets))
            model = loading.random_model(family, shapes, config, initialise=False)
        elif config.named_size:
            tokens = tokenizer.shipped()
            if name == "tiny":
                shapes = loading.tiny_shapes(family, config.tiny, tokens.get_vocab_size())
            else:
                shapes = loading.named_shapes(family, name)
            special = special_ids(tokens, name)
            shapes.image_token_id, shapes.video_token_id = special.image, special.query
            shapes.vision_start_token_id = special.vision_start
            shapes.vision_end_token_id = special.vision_end
            model = loading.random_model(family, shapes, config)
        else:
            shapes = loading.hub_shapes(family, name, config.SIZES)
            tokens, stats = tokenizer.from_pretrained(name), image_stats(own, name)
            model = (
                loading.pretrained_model(family, config)
                if config.pretrained
                else loading.random_model(family, shapes, config)
            )
        vlm = cls(config, model, tokens, n_views, image_size, stats)
        vlm.published = config.pretrained and assets is None
        if config.language_head:
            vlm.add_head()
        return vlm

    def conversation_collator(self, max_tokens: int, pack: bool) -> ChatCollator:
        """The writer of conversations; holds no reference to the module.

        Raises:
            ConfigError: several conversations in a row, and a kernel that cannot keep them apart.
        """
        if pack and self.config.attn_implementation == FLASH:
            raise ConfigError(
                f"datasets.vlm.pack: {FLASH} cannot keep the conversations of a row apart; set "
                "datasets.vlm.pack=false, or framework.vlm.attn_implementation=sdpa"
            )
        return ChatCollator(
            tokenizer=self.tokenizer,
            special=self.special,
            chat=ChatIds.of(self.tokenizer, self.config.base_vlm),
            system=self.config.SYSTEM,
            grid=self.dims.grid,
            image_size=self.image_size,
            max_tokens=max_tokens,
            pack=pack,
        )

    def converse(self, batch: ConversationBatch) -> VLMOutput:
        """See :class:`~vla_core.interfaces.ConversingModel`."""
        return converse(self, batch)

    def save_assets(self, directory: Path) -> None:
        """Write architecture, tokenizer and image statistics: with the weights all that is needed offline."""
        directory.mkdir(parents=True, exist_ok=True)
        shapes = self.family.config_class.from_dict(self.model.config.to_dict())
        shapes.save_pretrained(directory)
        self.tokenizer.save(str(directory / tokenizer.TOKENIZER_FILE))
        vision = self.model.config.vision_config
        save_image_stats(
            directory,
            self.stats,
            "Qwen2VLImageProcessor",
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        )
