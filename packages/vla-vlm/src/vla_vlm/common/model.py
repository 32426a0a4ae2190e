"""Backbones whose decoder reads text with image, prefix and query tokens in reserved places.

Shape legend: B rows, V views, M = B * V images, N visual tokens, S tokens, H hidden size, P prefix and
Q query tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from vla_core.batch import Batch, Role, TokenFields
from vla_core.interfaces import PromptSpec, TextTokens, VisualTokens, VLMDims, VLMOutput, VLMRequest

from vla_vlm.common.answers import (
    before_answers,
    closing_tokens,
    every_answer,
    last_column,
)
from vla_vlm.common.collator import PromptCollator
from vla_vlm.common.config import BackboneConfig
from vla_vlm.common.decoder import KVCache, TextDecoder
from vla_vlm.common.kernels import check_runs
from vla_vlm.common.positions import Positions
from vla_vlm.common.reach import above, highest, names_of
from vla_vlm.common.reserved import check_counts, overwrite, where
from vla_vlm.common.rope import TextRope
from vla_vlm.common.speaking import Speaking
from vla_vlm.common.text import Deepstack, run_layers
from vla_vlm.common.tokenizer import SpecialIds


class DecoderVLM(Speaking):
    """Everything of the protocol but building: a subclass sets these and encodes images.

    Attributes:
        tokenizer, special: and the ids the collator writes itself.
        positions: of a row's tokens, as many axes as ``rope`` reads.
        rope: rotary tables of the language model.
        n_views, image_size: of every batch.
        dims: sizes other parts are built from; with ``decoder``, :meth:`make_head` is right for it.
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
    def raw_states(self) -> bool:
        """Whether heads get hidden states as :func:`~.text.run_layers` calls them raw."""
        return False

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """uint8 (or [0, 1]) ``[M, 3, H, W]`` -> tokens ``[M, N / V, H]``, and more of them for deepstack."""

    def unused(self, request: VLMRequest) -> list[str]:
        """Names of the modules that a request never runs; their parameters have no gradient."""
        return names_of(self, self.unreached(request))

    def unreached(self, request: VLMRequest) -> list[nn.Module]:
        """The modules that a request never runs."""
        top, n_layers = highest(request, self.dims.n_layers), self.dims.n_layers
        speaks = request.decoder > 0 or request.logits != "none"
        normed = top == n_layers and (speaks or not self.raw_states)
        head = [self.lm_head] if self.lm_head is not None and not speaks else []
        return [*above(self.language_model, top, normed), *head]

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
            first_answer=None if self.answers is None else self.answers.first,
            closing=closing_tokens(self.tokenizer, prompt.closing) if prompt.closing else (),
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
        self.check_images(images)
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

    def check_images(self, images: Tensor) -> None:
        """Raise ValueError for another number or size of images than the model was built for."""
        expected = (self.n_views, 3, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images are {list(images.shape)}, "
                f"the model was built for [B, {', '.join(map(str, expected))}]"
            )
        check_runs(self.config.attn_implementation, self.language_model.embed_tokens.weight)

    def forward(
        self, text: TextTokens, visual: VisualTokens, prefix: Tensor | None, request: VLMRequest
    ) -> VLMOutput:
        """Run the language model up to the highest requested layer, and to its end for an answer.

        Raises:
            ValueError: image, prefix or query tokens differ in number from the prompt's, a requested
                layer doesn't exist, keys and values are not served, logits are asked for where no answer
                is written, or beside a decoder.
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
        text_BS = text.mask
        if request.decoder:
            if request.logits != "none":
                raise ValueError("logits are read off an answer, and a decoder speaks without seeing it")
            # Validation speaks on batches that hold the answers.
            text_BS = text_BS & (roles != int(Role.ANSWER))
        # Tokens of a missing view keep their place but nobody attends to them.
        mask = text_BS.scatter(1, index, visual.mask)
        if prefix is not None and given["prefix"]:
            embeds = overwrite(embeds, where(roles, Role.PREFIX, given["prefix"]), prefix)
        if request.queries is not None and given["query"]:
            every = torch.arange(given["query"], device=embeds.device)
            queries = request.queries(every).expand(embeds.shape[0], -1, -1)
            embeds = overwrite(embeds, where(roles, Role.QUERY, given["query"]), queries)
        position_ids = self.number(fields.position_ids, mask)
        cache = KVCache(request.decoder) if request.decoder else None
        speaks = cache is not None or request.logits != "none"
        if request.kv and self.dims.kv is None:
            raise ValueError("keys and values are asked for, and this model serves none (VLMDims.kv)")
        hidden, kv = self.run(
            embeds,
            mask,
            position_ids,
            (*request.layers, self.dims.n_layers) if speaks else request.layers,
            only_tail_invalid=fields.right_padded and fields.all_views,
            deepstack=Deepstack(index, visual.deepstack) if visual.deepstack else None,
            cache=cache,
            kv_layers=request.kv,
        )
        spans = {
            "image": (roles == int(Role.IMAGE)) & mask,
            "instruction": text.instruction_mask,
            "query": roles == int(Role.QUERY),
            "prefix": roles == int(Role.PREFIX),
            "answer": roles == int(Role.ANSWER),
        }
        states = {i: hidden[i] for i in request.layers}
        if speaks and self.raw_states:
            hidden[self.dims.n_layers] = self.language_model.norm(hidden[self.dims.n_layers])
        out = VLMOutput(states, mask, spans, position_ids=position_ids, kv=kv)
        if request.logits != "none":
            if fields.labels is None:
                raise ValueError("logits are asked for, and this batch has no answers; collate for training")
            last = hidden[self.dims.n_layers]
            if request.logits == "labels":
                before = before_answers(last, roles, fields.labels.shape[1])
                out.logits, out.labels = self.read(before), fields.labels
            else:
                before, out.labels = every_answer(last, fields.input_ids, roles, fields.n_answer)
                out.logits = self.logits_of(before, slice(None))
        if cache is not None:
            out.decoder = self._decoder(fields, text_BS, mask, hidden[self.dims.n_layers], cache)
        return out

    def number(self, position_ids: Tensor, mask_BS: Tensor) -> Tensor:
        """Positions ``[axes, B, S]`` of a batch: the collator's, which count a missing view like one that is
        there. A model that was trained to skip it counts again."""
        return position_ids

    def run(
        self,
        embeds_BSH: Tensor,
        valid_BS: Tensor,
        position_ids: Tensor,
        layers: Sequence[int],
        kv_layers: Sequence[int] = (),
        **kwargs: Any,
    ) -> tuple[dict[int, Tensor], dict[int, tuple[Tensor, Tensor]]]:
        """Hidden states of ``layers``: :func:`~.text.run_layers`, which says what else there is.

        Keys and values of ``kv_layers`` come second; none here, where ``dims.kv`` is None.
        """
        hidden = run_layers(
            self.language_model,
            self.rope,
            embeds_BSH,
            valid_BS,
            position_ids,
            layers,
            raw=self.raw_states,
            **kwargs,
        )
        return hidden, {}

    def _decoder(
        self, fields: TokenFields, text_BS: Tensor, mask: Tensor, hidden: Tensor, cache: KVCache
    ) -> TextDecoder:
        assert fields.position_ids is not None
        assert self.answers is not None, "call add_answers first"
        first = self.answers.first
        column = last_column(text_BS)[:, None, None].expand(-1, 1, hidden.shape[-1])
        return TextDecoder(
            language_model=self.language_model,
            rope=self.rope,
            cache=cache,
            valid_BS=mask,
            position_B=(fields.position_ids * text_BS).amax(dim=(0, 2)) + 1,
            axes=len(fields.position_ids),
            embed=lambda ids: self.language_model.embed_tokens(ids + first),
            read=self.read,
            hidden_BH=hidden.gather(1, column)[:, 0],
        )
