"""A vision-language backbone in one file: bytes and patches through a small transformer.

Shape legend: B rows, V views, S tokens, N visual tokens (V * h * w), H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vla_core.batch import Batch, Role, TokenFields
from vla_core.interfaces import PromptSpec, TextTokens, VisualTokens, VLMDims, VLMOutput, VLMRequest
from vla_core.shard import mark
from vla_core.types import Sample

BYTES = 256
RESERVED = BYTES  # one id for everything whose embedding is overwritten: image, prefix, query, padding
LONGEST = 4096


@dataclass(frozen=True)
class MyCollator:
    """Picklable and weightless: training workers and the server use the same one."""

    prompt: PromptSpec
    n_image: int

    def row(self, instruction: str) -> tuple[list[int], list[int]]:
        """Ids and roles of one prompt; what other parts fill in is reserved here, never concatenated."""
        segments = [
            ([RESERVED] * self.prompt.n_prefix, Role.PREFIX),
            ([RESERVED] * self.n_image, Role.IMAGE),
            (list(instruction.encode()), Role.INSTRUCTION),
            (list(self.prompt.suffix.encode()), Role.TEXT),
            ([RESERVED] * self.prompt.n_query, Role.QUERY),
        ]
        ids = [token for tokens, _ in segments for token in tokens]
        return ids, [int(role) for tokens, role in segments for _ in tokens]

    def __call__(self, samples: Sequence[Sample]) -> TokenFields:
        """Rows padded on the right to the longest."""
        rows = [self.row(sample.observation.instruction) for sample in samples]
        longest = max(len(ids) for ids, _ in rows)
        ids_BS = torch.full((len(rows), longest), RESERVED)
        roles_BS = torch.full((len(rows), longest), int(Role.PAD), dtype=torch.uint8)
        for i, (ids, roles) in enumerate(rows):
            ids_BS[i, : len(ids)] = torch.tensor(ids)
            roles_BS[i, : len(ids)] = torch.tensor(roles, dtype=torch.uint8)
        return TokenFields(ids_BS, roles_BS != Role.PAD, roles_BS)


class MyVLM(nn.Module):
    """Entry point ``my_vlm`` in ``vla.vlms``."""

    @dataclass(frozen=True)
    class Config:
        """The YAML node ``framework.vlm``."""

        hidden_size: int = 32
        n_layers: int = 2
        patch: int = 16

    def __init__(self, config: Config, n_views: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch
        grid = (image_size[0] // patch, image_size[1] // patch)
        self.dims = VLMDims(hidden_size=width, n_layers=config.n_layers, grid=grid)
        self.n_image = n_views * grid[0] * grid[1]
        self.embed = nn.Embedding(BYTES + 1, width)
        self.positions = nn.Embedding(LONGEST, width)
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(config.n_layers)
        )
        mark(self.layers)  # what an engine that spreads parameters gathers one by one
        self.norm = nn.LayerNorm(width)

    @classmethod
    def build(
        cls, config: Any, n_views: int, image_size: tuple[int, int], assets: Path | None = None
    ) -> MyVLM:
        """The config says everything, so ``assets`` holds nothing that is needed."""
        return cls(config, n_views, image_size)

    def save_assets(self, directory: Path) -> None:
        """Bytes need no tokenizer file."""

    def collator(self, prompt: PromptSpec) -> MyCollator:
        """The tokeniser for what head and fusion want in the prompt."""
        return MyCollator(prompt, self.n_image)

    def embed_text(self, batch: Batch) -> TextTokens:
        """The prompt's embeddings; reserved ids have theirs overwritten later."""
        fields = batch.tokens
        instruction_BS = fields.roles == Role.INSTRUCTION
        return TextTokens(self.embed(fields.input_ids), fields.attention_mask, instruction_BS, fields)

    def embed_images(self, images: Tensor, view_mask: Tensor) -> VisualTokens:
        """uint8 images to one token a patch; mean and scale are this encoder's own affair."""
        pixels = images.flatten(0, 1).to(self.patches.weight.dtype) / 127.5 - 1
        tokens_BNH = self.patches(pixels).flatten(2).transpose(1, 2).reshape(len(images), self.n_image, -1)
        views = images.shape[1]
        mask_BN = view_mask.repeat_interleave(self.n_image // views, dim=1)
        return VisualTokens(tokens_BNH, mask_BN, (views, *self.dims.grid))

    def forward(
        self, text: TextTokens, visual: VisualTokens, prefix: Tensor | None, request: VLMRequest
    ) -> VLMOutput:
        """Hidden states of the requested layers; layers above the highest one are not run."""
        roles_BS, x_BSH, mask_BS = text.fields.roles, text.embeds, text.mask
        fill: list[tuple[Role, Tensor | None]] = [(Role.IMAGE, visual.tokens), (Role.PREFIX, prefix)]
        if request.queries is not None:
            queries_QH = request.queries(torch.arange(request.queries.num_embeddings, device=x_BSH.device))
            fill.append((Role.QUERY, queries_QH.expand(len(x_BSH), -1, -1)))
        for role, tokens in fill:
            if tokens is not None:
                x_BSH = x_BSH.masked_scatter((roles_BS == role)[..., None], tokens.to(x_BSH.dtype))
        mask_BS = mask_BS.masked_scatter(roles_BS == Role.IMAGE, visual.mask)
        x_BSH = x_BSH + self.positions(torch.arange(x_BSH.shape[1], device=x_BSH.device))
        hidden = {0: x_BSH}
        for i, layer in enumerate(self.layers[: max(request.layers, default=0)], start=1):
            x_BSH = layer(x_BSH, src_key_padding_mask=~mask_BS)
            hidden[i] = self.norm(x_BSH) if i == self.dims.n_layers else x_BSH
        spans = {role.name.lower(): roles_BS == role for role in Role if role is not Role.PAD}
        return VLMOutput({i: hidden[i] for i in request.layers}, mask_BS, spans)
