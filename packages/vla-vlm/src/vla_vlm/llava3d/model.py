"""LLaVA-3D behind the ``VisionLanguageModel`` protocol.

Shape legend: B rows, V views, M = B * V images, N visual tokens, S tokens, H hidden size.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization
from vla_core.batch import Batch, Role
from vla_core.errors import ConfigError
from vla_core.interfaces import PromptSpec, TextTokens, VisualTokens, VLMDims
from vla_core.shard import mark

from vla_vlm.common import tokenizer
from vla_vlm.common.collator import PromptCollator
from vla_vlm.common.model import DecoderVLM
from vla_vlm.common.pixels import ImageStats, image_stats, save_image_stats
from vla_vlm.common.positions import sequence_positions
from vla_vlm.common.rope import TextRope
from vla_vlm.common.towers import TOWERS, build_tower
from vla_vlm.llava3d import loading
from vla_vlm.llava3d.config import Llava3DConfig
from vla_vlm.llava3d.projector import build_projector
from vla_vlm.llava3d.shapes import DECODERS, Shapes, named_shapes, tiny_shapes
from vla_vlm.llava3d.tokenizer import add_reserved

logger = logging.getLogger(__name__)


class Llava3DParts(nn.Module):
    """What has weights: transformers' ``vision_tower`` and ``language_model``, LLaVA's ``mm_projector``."""

    def __init__(self, shapes: Shapes, config: Llava3DConfig, initialise: bool) -> None:
        super().__init__()
        dtype, attn = getattr(torch, config.dtype), config.attn_implementation
        with contextlib.nullcontext() if initialise else initialization.no_init_weights():
            self.vision_tower = build_tower(shapes.tower, shapes.vision, dtype, attn)
            model = DECODERS[shapes.decoder][1]
            self.language_model = model._from_config(shapes.text, dtype=dtype, attn_implementation=attn)
        text = shapes.text
        projector = build_projector(
            shapes.projector, shapes.vision.hidden_size, text.hidden_size, text.initializer_range
        )
        self.mm_projector = projector.to(dtype)
        if config.gradient_checkpointing:
            for part in (self.vision_tower, self.language_model):
                part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


class Llava3D(DecoderVLM):
    """A SigLIP or CLIP tower, a projector and a Llama or Mistral decoder (LLaVA-3D, arXiv 2409.18125).

    V views give V * h * w tokens (256 a view for SigLIP at 224 x 224) at the place of ``<image>``, which is a
    real token with a row of its own in the embedding. LLaVA-3D's own 3D branch is not built: geometry
    comes from an encoder and a fusion. Made by :meth:`build`.

    Attributes:
        model: ``vision_tower``, ``mm_projector``, ``language_model``.
        new_parts: module -> why it starts from scratch although weights were loaded.
    """

    Config: ClassVar[type] = Llava3DConfig
    config: Llava3DConfig

    def __init__(
        self,
        config: Llava3DConfig,
        shapes: Shapes,
        tokens: Tokenizer,
        n_views: int,
        image_size: tuple[int, int],
        stats: ImageStats,
        initialise: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.tokenizer, self.stats = config, tokens, stats
        self.n_views, self.image_size = n_views, image_size
        self.new_parts: Mapping[str, str] = {}
        # Built before the weights are touched: it checks the image size.
        self.vision_runner = TOWERS[shapes.tower].runner(shapes.vision, image_size, stats)
        self.rope = TextRope(shapes.text)
        self.positions = sequence_positions
        self.special = add_reserved(tokens, config.base_vlm)
        self.shapes = shapes.with_vocabulary(tokens.get_vocab_size())
        self.model = Llava3DParts(self.shapes, config, initialise)
        mark(self.language_model.layers)
        self.dims = VLMDims(
            hidden_size=shapes.text.hidden_size,
            n_layers=shapes.text.num_hidden_layers,
            grid=self.vision_runner.grid,
            decoder=True,
        )

    @property
    def language_model(self) -> Any:
        """``model.language_model``."""
        return self.model.language_model

    @classmethod
    def build(
        cls, config: Llava3DConfig, n_views: int, image_size: tuple[int, int], assets: Path | None = None
    ) -> Self:
        """Make the module (see the protocol for ``assets``).

        Raises:
            ConfigError: a part can't be found or loaded, or the images are not of the tower's size.
        """
        if assets is not None:
            shapes, tokens = Shapes.load(assets), tokenizer.from_directory(assets)
            stats = image_stats(TOWERS[shapes.tower].stats, str(assets))
            return cls(config, shapes, tokens, n_views, image_size, stats, initialise=False)
        if config.named_size:
            tokens, stats = tokenizer.shipped(), TOWERS[config.vision_tower].stats
            tiny = config.base_vlm == "tiny"
            shapes = (
                tiny_shapes(config, tokens.get_vocab_size(), image_size) if tiny else named_shapes(config)
            )
            return cls(config, shapes, tokens, n_views, image_size, stats)
        checkpoint = loading.read_checkpoint(config)
        tokens = loading.read_tokenizer(config, checkpoint.shapes.text.vocab_size)
        stats = image_stats(TOWERS[config.vision_tower].stats, checkpoint.tower)
        fill = config.pretrained
        made = cls(config, checkpoint.shapes, tokens, n_views, image_size, stats, initialise=not fill)
        if fill:
            loading.load_decoder(made.language_model, made.model.mm_projector, checkpoint, config)
            loading.load_tower(made.model.vision_tower, checkpoint)
            if checkpoint.new_projector is not None:
                made.new_parts = {"model.mm_projector": checkpoint.new_projector}
                logger.warning(
                    "llava3d: the projector (model.mm_projector, %s) is new and has to be trained: %s",
                    checkpoint.shapes.projector,
                    checkpoint.new_projector,
                )
        return made

    def save_assets(self, directory: Path) -> None:
        """Write architecture, tokenizer and image statistics: with the weights all that is needed offline."""
        directory.mkdir(parents=True, exist_ok=True)
        replace(self.shapes, text=self.language_model.config).save(directory)
        self.tokenizer.save(str(directory / tokenizer.TOKENIZER_FILE))
        save_image_stats(directory, self.stats)

    def collator(self, prompt: PromptSpec) -> PromptCollator:
        """See :meth:`DecoderVLM.collator`.

        Raises:
            ConfigError: the prompt is longer than the window of tokens that a Mistral model attends to.
        """
        made = replace(super().collator(prompt), whitespace=self.config.instruction_whitespace)
        window = getattr(self.shapes.text, "sliding_window", None)
        if window is not None and made.length > window:
            raise ConfigError(
                f"a prompt of {made.length} tokens is longer than the sliding_window of {window} tokens of "
                f"base_vlm '{self.config.base_vlm}'; use fewer views or a smaller max_text_tokens"
            )
        return made

    def encode(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Through ``vision_tower`` and ``mm_projector``; no deepstack."""
        return self.model.mm_projector(self.vision_runner(self.model.vision_tower, images)), ()

    def embed_images(self, images: Tensor, view_mask: Tensor) -> VisualTokens:
        """See :meth:`DecoderVLM.embed_images`; in training some tokens are dropped."""
        visual = super().embed_images(images, view_mask)
        share = self.config.prefix_image_dropout_prob
        if not self.training or share == 0:
            return visual
        return replace(visual, tokens=visual.tokens * kept(visual.tokens, share))

    def embed_text(self, batch: Batch) -> TextTokens:
        """See :meth:`DecoderVLM.embed_text`; in training some tokens of the text are dropped."""
        text = super().embed_text(batch)
        share = self.config.prefix_lang_dropout_prob
        if not self.training or share == 0:
            return text
        roles = batch.tokens.roles
        is_text = (roles == int(Role.TEXT)) | (roles == int(Role.INSTRUCTION))
        factor = kept(text.embeds, share).where(is_text[..., None], 1.0)
        return replace(text, embeds=text.embeds * factor)


def kept(tokens_BSH: Tensor, share: float) -> Tensor:
    """Factors ``[B, S, 1]``: 0 for a dropped token, 1 / (1 - share) for the others."""
    return F.dropout(tokens_BSH.new_ones(*tokens_BSH.shape[:2], 1), share)
