"""Backbones whose decoder reads text with image, prefix and query tokens in reserved places.

Shape legend: B rows, V views, M = B * V images, N visual tokens, S tokens, H hidden size, P prefix and
Q query tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from tokenizers import Tokenizer
from torch import Tensor, nn
from vla_core.batch import Batch, Role
from vla_core.interfaces import PromptSpec, TextTokens, VisualTokens, VLMDims, VLMOutput, VLMRequest

from vla_vlm.common.collator import PromptCollator
from vla_vlm.common.config import BackboneConfig
from vla_vlm.common.positions import Positions
from vla_vlm.common.reserved import check_counts, overwrite, where
from vla_vlm.common.rope import TextRope
from vla_vlm.common.text import Deepstack, run_layers
from vla_vlm.common.tokenizer import SpecialIds


class DecoderVLM(nn.Module, ABC):
    """Everything of the protocol but building: a subclass sets these and encodes images.

    Attributes:
        tokenizer, special: and the ids the collator writes itself.
        positions: of a row's tokens, as many axes as ``rope`` reads.
        rope: rotary tables of the language model.
        n_views, image_size: of every batch.
        dims: sizes other parts are built from.
    """

    Config: ClassVar[type]
    config: BackboneConfig
    tokenizer: Tokenizer
    special: SpecialIds
    positions: Positions
    rope: TextRope
    n_views: int
    image_size: tuple[int, int]
    dims: VLMDims

    @property
    @abstractmethod
    def language_model(self) -> Any:
        """transformers' decoder: ``embed_tokens``, ``layers``, ``norm``."""

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """uint8 (or [0, 1]) ``[M, 3, H, W]`` -> tokens ``[M, N / V, H]``, and more of them for deepstack."""

    def collator(self, prompt: PromptSpec) -> PromptCollator:
        """The prompt writer of this model for ``prompt``; holds no reference to the module."""
        return PromptCollator(
            tokenizer=self.tokenizer,
            special=self.special,
            template=self.config.template(),
            prompt=prompt,
            n_views=self.n_views,
            grid=self.dims.grid,
            max_text_tokens=self.config.max_text_tokens,
            padding=self.config.padding,
            positions=self.positions,
        )

    def embed_text(self, batch: Batch) -> TextTokens:
        """Embeddings of the prompt; reserved ids have rows of their own that are overwritten later."""
        fields = batch.tokens
        return TextTokens(
            embeds=self.language_model.embed_tokens(fields.input_ids),
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
        tokens, deepstack = self.encode(images.flatten(0, 1))
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
            self.language_model,
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
