"""Qwen's models behind the ``VisionLanguageModel`` protocol.

Shape legend: B rows, V views, N visual tokens, S tokens, H hidden size, P prefix and Q query tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from vla_core.batch import Batch, Role
from vla_core.errors import ConfigError
from vla_core.interfaces import PromptSpec, TextTokens, VisualTokens, VLMDims, VLMOutput, VLMRequest

from vla_vlm.qwen import loading, tokenizer
from vla_vlm.qwen.attention import replace_vision_attention
from vla_vlm.qwen.collator import QwenCollator
from vla_vlm.qwen.config import QwenConfig
from vla_vlm.qwen.family import Family
from vla_vlm.qwen.prompt import Template
from vla_vlm.qwen.reserved import check_counts, overwrite, where
from vla_vlm.qwen.rope import TextRope
from vla_vlm.qwen.stem import ConvStem
from vla_vlm.qwen.text import Deepstack, run_layers


class QwenVLM(nn.Module):
    """``model`` is the model of transformers: ``model.visual`` and ``model.language_model``.

    Parameters carry the names of its ``ForConditionalGeneration`` without the ``lm_head``. A
    subclass names its ``Config`` and :class:`~.family.Family`; it is made by :meth:`build`.
    """

    Config: ClassVar[type]
    family: ClassVar[Family]

    def __init__(
        self,
        config: QwenConfig,
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
        self.vision_runner = self.family.vision(vision, image_size, stats.mean, stats.std)
        self.rope = TextRope(model.config.text_config, self.family.rope_axes)
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
        cls, config: Any, n_views: int, image_size: tuple[int, int], assets: Path | None = None
    ) -> Self:
        """Make the module (see the protocol for ``assets``).

        Raises:
            ConfigError: the model can't be found or loaded, or the image size doesn't fit its grid.
        """
        family, name = cls.family, config.base_vlm
        stats = loading.image_stats(family)
        if assets is not None:
            if not (assets / "config.json").is_file():
                raise ConfigError(f"{assets / 'config.json'}: no such file; save the checkpoint again")
            shapes = loading.hub_shapes(family, str(assets), config.SIZES)
            tokens, stats = tokenizer.from_directory(assets), loading.image_stats(family, str(assets))
            model = loading.random_model(family, shapes, config, initialise=False)
        elif config.named_size:
            tokens = tokenizer.shipped()
            if name == "tiny":
                shapes = loading.tiny_shapes(family, config.tiny, tokens.get_vocab_size())
            else:
                shapes = loading.named_shapes(family, name)
            special = tokenizer.special_ids(tokens, name)
            shapes.image_token_id, shapes.video_token_id = special.image, special.query
            shapes.vision_start_token_id = special.vision_start
            shapes.vision_end_token_id = special.vision_end
            model = loading.random_model(family, shapes, config)
        else:
            shapes = loading.hub_shapes(family, name, config.SIZES)
            tokens, stats = tokenizer.from_pretrained(name), loading.image_stats(family, name)
            model = (
                loading.pretrained_model(family, config)
                if config.pretrained
                else loading.random_model(family, shapes, config)
            )
        return cls(config, model, tokens, n_views, image_size, stats)

    def save_assets(self, directory: Path) -> None:
        """Write architecture, tokenizer and image statistics: with the weights all that is needed offline."""
        directory.mkdir(parents=True, exist_ok=True)
        shapes = self.family.config_class.from_dict(self.model.config.to_dict())
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

    def collator(self, prompt: PromptSpec) -> QwenCollator:
        """The prompt writer of this model for ``prompt``; holds no reference to the module."""
        return QwenCollator(
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
        tokens, deepstack = self.vision_runner(self.model.visual, images.flatten(0, 1))
        mask = view_mask[:, :, None].expand(b, self.n_views, h * w).reshape(b, -1)
        per_row = (b, self.n_views * h * w, -1)
        return VisualTokens(
            tokens=tokens.view(per_row),
            mask=mask,
            grid=(self.n_views, h, w),
            deepstack=tuple(x.view(per_row) for x in deepstack) if deepstack else None,
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
            deepstack=Deepstack(index, visual.deepstack) if visual.deepstack else None,
        )
        spans = {
            "image": (roles == int(Role.IMAGE)) & mask,
            "instruction": text.instruction_mask,
            "query": roles == int(Role.QUERY),
            "prefix": roles == int(Role.PREFIX),
        }
        return VLMOutput(hidden=hidden, mask=mask, spans=spans)
