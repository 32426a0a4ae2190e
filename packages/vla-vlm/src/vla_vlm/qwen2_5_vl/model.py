"""Qwen2.5-VL behind the ``VisionLanguageModel`` protocol.

Shape legend: B rows, V views, N visual tokens, S tokens, H hidden size, P prefix and Q query tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from vla_core.batch import Batch, Role
from vla_core.errors import ConfigError
from vla_core.interfaces import PromptSpec, TextTokens, VisualTokens, VLMDims, VLMOutput, VLMRequest

from vla_vlm.qwen2_5_vl import loading, tokenizer
from vla_vlm.qwen2_5_vl.attention import replace_vision_attention
from vla_vlm.qwen2_5_vl.collator import Qwen25VLCollator
from vla_vlm.qwen2_5_vl.config import Qwen25VLConfig
from vla_vlm.qwen2_5_vl.prompt import Template
from vla_vlm.qwen2_5_vl.reserved import check_counts, overwrite, where
from vla_vlm.qwen2_5_vl.rope import TextRope
from vla_vlm.qwen2_5_vl.stem import ConvStem
from vla_vlm.qwen2_5_vl.text import run_layers
from vla_vlm.qwen2_5_vl.vision import VisionRunner


class Qwen25VL(nn.Module):
    """``model`` is transformers' ``Qwen2_5_VLModel``: ``model.visual`` and ``model.language_model``.

    Parameters carry the names of ``Qwen2_5_VLForConditionalGeneration`` without its ``lm_head``.
    Made by :meth:`build`.
    """

    Config: ClassVar[type] = Qwen25VLConfig

    def __init__(
        self,
        config: Qwen25VLConfig,
        model: Any,
        tokens: Tokenizer,
        n_views: int,
        image_size: tuple[int, int],
        stats: loading.ImageStats,
    ) -> None:
        super().__init__()
        self.config, self.tokenizer, self.stats = config, tokens, stats
        self.n_views, self.image_size = n_views, image_size
        self.special = tokenizer.special_ids(tokens, config.base_vlm)
        if tokens.get_vocab_size() > model.config.text_config.vocab_size:
            raise ConfigError(
                f"base_vlm '{config.base_vlm}': the tokenizer has {tokens.get_vocab_size()} entries, "
                f"the model only {model.config.text_config.vocab_size}; they don't belong together"
            )
        vision = model.config.vision_config
        # Built before the weights are touched: it checks the image size.
        self.vision_runner = VisionRunner(vision, image_size, stats.mean, stats.std)
        self.rope = TextRope(model.config.text_config)
        if config.vision == "conv_vit":
            stem = ConvStem(vision.hidden_size, vision.patch_size, vision.spatial_merge_size)
            model.visual.patch_embed = stem.to(getattr(torch, config.dtype))
        replace_vision_attention(model.visual)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model = model
        self.dims = VLMDims(
            hidden_size=model.config.text_config.hidden_size,
            n_layers=model.config.text_config.num_hidden_layers,
            grid=self.vision_runner.grid,
        )

    @classmethod
    def build(
        cls,
        config: Qwen25VLConfig,
        n_views: int,
        image_size: tuple[int, int],
        assets: Path | None = None,
    ) -> Qwen25VL:
        """Make the module (see the protocol for ``assets``).

        Raises:
            ConfigError: the model can't be found or loaded, or the image size doesn't fit its grid.
        """
        stats = loading.ImageStats()
        if assets is not None:
            if not (assets / "config.json").is_file():
                raise ConfigError(f"{assets / 'config.json'}: no such file; save the checkpoint again")
            shapes = loading.hub_config(str(assets))
            tokens, stats = tokenizer.from_directory(assets), loading.image_stats(str(assets))
            model = loading.random_model(shapes, config, initialise=False)
        elif config.named_size:
            tokens = tokenizer.shipped()
            if config.base_vlm == "tiny":
                shapes = loading.tiny_config(config.tiny, tokens.get_vocab_size())
            else:
                shapes = loading.named_config(config.base_vlm)
            special = tokenizer.special_ids(tokens, config.base_vlm)
            shapes.image_token_id, shapes.video_token_id = special.image, special.query
            shapes.vision_start_token_id = special.vision_start
            shapes.vision_end_token_id = special.vision_end
            model = loading.random_model(shapes, config)
        else:
            shapes = loading.hub_config(config.base_vlm)
            tokens, stats = tokenizer.from_pretrained(config.base_vlm), loading.image_stats(config.base_vlm)
            model = (
                loading.pretrained_model(config)
                if config.pretrained
                else loading.random_model(shapes, config)
            )
        return cls(config, model, tokens, n_views, image_size, stats)

    def save_assets(self, directory: Path) -> None:
        """Write architecture, tokenizer and image statistics: with the weights all that is needed offline."""
        directory.mkdir(parents=True, exist_ok=True)
        shapes = Qwen2_5_VLConfig.from_dict(self.model.config.to_dict())
        shapes.save_pretrained(directory)
        self.tokenizer.save(str(directory / tokenizer.TOKENIZER_FILE))
        vision = self.model.config.vision_config
        processor = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": list(self.stats.mean),
            "image_std": list(self.stats.std),
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        }
        (directory / loading.PROCESSOR_FILE).write_text(json.dumps(processor, indent=2) + "\n")

    def collator(self, prompt: PromptSpec) -> Qwen25VLCollator:
        """The prompt writer of this model for ``prompt``; holds no reference to the module."""
        return Qwen25VLCollator(
            tokenizer=self.tokenizer,
            special=self.special,
            template=Template.parse(self.config.prompt, self.config.cot_prompt),
            prompt=prompt,
            n_views=self.n_views,
            grid=self.dims.grid,
            max_text_tokens=self.config.max_text_tokens,
            padding=self.config.padding,
        )

    def embed_text(self, batch: Batch) -> TextTokens:
        """Embeddings of the prompt; reserved ids have rows of their own that are overwritten later."""
        fields = batch.tokens
        return TextTokens(
            embeds=self.model.language_model.embed_tokens(fields.input_ids),
            mask=fields.attention_mask,
            instruction_mask=fields.roles == int(Role.INSTRUCTION),
            fields=fields,
        )

    def embed_images(self, images: Tensor, view_mask: Tensor) -> VisualTokens:
        """uint8 (or [0, 1]) images ``[B, V, 3, H, W]`` -> tokens ``[B, V * h * w, H]`` in view order.

        Raises:
            ValueError: another number of views or another size than the model was built for.
        """
        expected = (self.n_views, 3, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images are {list(images.shape)}, "
                f"the model was built for [B, {', '.join(map(str, expected))}]"
            )
        b, (h, w) = images.shape[0], self.dims.grid
        tokens = self.vision_runner(self.model.visual, images.flatten(0, 1))
        mask = view_mask[:, :, None].expand(b, self.n_views, h * w).reshape(b, -1)
        return VisualTokens(
            tokens=tokens.view(b, self.n_views * h * w, -1), mask=mask, grid=(self.n_views, h, w)
        )

    def forward(
        self, text: TextTokens, visual: VisualTokens, prefix: Tensor | None, request: VLMRequest
    ) -> VLMOutput:
        """Run the language model up to the highest requested layer.

        Raises:
            ValueError: image, prefix or query tokens differ in number from the prompt's, or a
                requested layer doesn't exist.
        """
        fields, roles = text.fields, text.fields.roles
        given = {
            "image": visual.tokens.shape[1],
            "prefix": 0 if prefix is None else prefix.shape[1],
            "query": 0 if request.queries is None else request.queries.num_embeddings,
        }
        check_counts(fields, given)
        assert fields.position_ids is not None
        index = where(roles, Role.IMAGE, given["image"])
        embeds = overwrite(text.embeds, index, visual.tokens)
        # Tokens of a missing view keep their place but nobody attends to them.
        mask = text.mask.scatter(1, index, visual.mask)
        if prefix is not None and given["prefix"]:
            embeds = overwrite(embeds, where(roles, Role.PREFIX, given["prefix"]), prefix)
        if request.queries is not None and given["query"]:
            queries = request.queries.weight.expand(embeds.shape[0], -1, -1)
            embeds = overwrite(embeds, where(roles, Role.QUERY, given["query"]), queries)
        hidden = run_layers(
            self.model.language_model,
            self.rope,
            embeds,
            mask,
            fields.position_ids,
            request.layers,
            only_tail_invalid=fields.right_padded and fields.all_views,
        )
        spans = {
            "image": (roles == int(Role.IMAGE)) & mask,
            "instruction": text.instruction_mask,
            "query": roles == int(Role.QUERY),
            "prefix": roles == int(Role.PREFIX),
        }
        return VLMOutput(hidden=hidden, mask=mask, spans=spans)
