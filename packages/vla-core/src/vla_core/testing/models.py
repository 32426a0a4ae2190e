"""The smallest backbone and head that honour the protocols, and a policy made of them.

Shape legend: B rows, V views, S tokens, H hidden size, T action steps, A action dims.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vla_core.assemble import build_policy
from vla_core.batch import Batch, Role, TokenFields
from vla_core.features import ROWS
from vla_core.framework import FrameworkConfig
from vla_core.interfaces import (
    HeadDims,
    HeadInputs,
    PromptSpec,
    Terms,
    TextTokens,
    VisualTokens,
    VLMDims,
    VLMOutput,
    VLMRequest,
)
from vla_core.policy import VLAPolicy
from vla_core.registry import override
from vla_core.shard import mark
from vla_core.specs import RobotSpec
from vla_core.testing.data import make_spec
from vla_core.traits import HeadTraits
from vla_core.types import Sample

GRID = 2
TEXT = 12


@dataclass(frozen=True)
class FakeTextCollator:
    """Byte tokens: prefix ids, image ids, then the instruction, suffix and queries, padded right."""

    n_views: int
    prompt: PromptSpec

    def __call__(self, samples: Sequence[Sample]) -> TokenFields:
        """Fields ``[B, S]`` with S fixed."""
        rows, roles = [], []
        for sample in samples:
            text = list(sample.observation.instruction.encode()[:TEXT])
            suffix = list(self.prompt.suffix.encode())
            parts = [
                ([0] * self.prompt.n_prefix, Role.PREFIX),
                ([0] * (self.n_views * GRID * GRID), Role.IMAGE),
                (text, Role.INSTRUCTION),
                (suffix, Role.TEXT),
                ([0] * self.prompt.n_query, Role.QUERY),
                ([0] * (TEXT - len(text)), Role.PAD),
            ]
            rows.append([i for ids, _ in parts for i in ids])
            roles.append([int(role) for ids, role in parts for _ in ids])
        role = torch.tensor(roles, dtype=torch.uint8)
        return TokenFields(torch.tensor(rows), role != Role.PAD, role)


@dataclass(frozen=True)
class FakeVLMConfig:
    """Sizes of the fake backbone."""

    hidden_size: int = 16
    n_layers: int = 2


class FakeVLM(nn.Module):
    """Mean colour of each image cell, byte embeddings, and residual layers that mix by the mean token."""

    Config = FakeVLMConfig

    def __init__(self, config: FakeVLMConfig, n_views: int) -> None:
        super().__init__()
        self.config, self.n_views = config, n_views
        self.dims = VLMDims(config.hidden_size, config.n_layers, (GRID, GRID))
        self.text = nn.Embedding(256, config.hidden_size)
        self.vision = nn.Linear(3, config.hidden_size)
        self.layers = nn.ModuleList(
            nn.Linear(2 * config.hidden_size, config.hidden_size) for _ in range(config.n_layers)
        )
        mark(self.layers)

    @classmethod
    def build(
        cls, config: FakeVLMConfig, n_views: int, image_size: tuple[int, int], assets: Path | None = None
    ) -> FakeVLM:
        """See :class:`~vla_core.interfaces.VisionLanguageModel`."""
        if assets is not None:
            assert json.loads((assets / "fake.json").read_text("utf-8"))["n_views"] == n_views
        return cls(config, n_views)

    def save_assets(self, directory: Path) -> None:
        """One small file, so that a test sees whether assets travel."""
        (directory / "fake.json").write_text(json.dumps({"n_views": self.n_views}))

    def collator(self, prompt: PromptSpec) -> FakeTextCollator:
        """A picklable byte tokeniser."""
        return FakeTextCollator(self.n_views, prompt)

    def embed_text(self, batch: Batch) -> TextTokens:
        """Byte embeddings ``[B, S, H]``."""
        fields = batch.tokens
        instruction = fields.roles == Role.INSTRUCTION
        return TextTokens(self.text(fields.input_ids), fields.attention_mask, instruction, fields)

    def embed_images(self, images: Tensor, view_mask: Tensor) -> VisualTokens:
        """``[B, V * 4, H]``: a projection of the mean colour of each quarter."""
        b, v = images.shape[:2]
        pixels = images.flatten(0, 1).to(self.vision.weight.dtype) / 255
        cells = nn.functional.adaptive_avg_pool2d(pixels, GRID).flatten(2).transpose(1, 2)
        tokens = self.vision(cells).reshape(b, v * GRID * GRID, -1)
        return VisualTokens(tokens, view_mask.repeat_interleave(GRID * GRID, 1), (v, GRID, GRID))

    def forward(
        self, text: TextTokens, visual: VisualTokens, prefix: Tensor | None, request: VLMRequest
    ) -> VLMOutput:
        """Fill the reserved ids, then run as many layers as requested."""
        roles, x = text.fields.roles, text.embeds
        fill = {Role.IMAGE: visual.tokens, Role.PREFIX: prefix}
        if request.queries is not None:
            queries = request.queries(torch.arange(request.queries.num_embeddings, device=x.device))
            fill[Role.QUERY] = queries.expand(x.shape[0], -1, -1)
        for role, tokens in fill.items():
            if tokens is not None:
                x = x.masked_scatter((roles == role)[..., None], tokens.to(x.dtype))
        # An assignment to chosen places would wait for the device, which no CUDA graph can hold.
        mask = text.mask.masked_scatter(roles == Role.IMAGE, visual.mask)
        weight = mask[..., None].to(x.dtype)
        hidden = {0: x} if 0 in request.layers else {}
        for i in range(max(request.layers, default=0)):
            mean = (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
            x = x + torch.tanh(self.layers[i](torch.cat([x, mean.expand_as(x)], -1)))
            if i + 1 in request.layers:
                hidden[i + 1] = x
        spans = {role.name.lower(): roles == role for role in Role if role not in (Role.PAD, Role.TEXT)}
        return VLMOutput(hidden, mask, spans)


@dataclass(frozen=True)
class FakeHeadConfig:
    """How much of the noise enters the answer (so that tests see whether seeds travel)."""

    noise_scale: float = 0.1


class FakeHead(nn.Module):
    """A linear layer on the mean hidden state and the state."""

    Config = FakeHeadConfig
    prompt = PromptSpec()
    traits = HeadTraits()

    def __init__(self, config: FakeHeadConfig, dims: HeadDims) -> None:
        super().__init__()
        self.config, self.dims = config, dims
        self.out = nn.Linear(dims.hidden_size + dims.state_dim, dims.horizon * dims.action_dim)

    @classmethod
    def build(cls, config: FakeHeadConfig, dims: HeadDims) -> FakeHead:
        """See :class:`~vla_core.interfaces.ActionHead`."""
        return cls(config, dims)

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest:
        """The last layer."""
        return VLMRequest(layers=(self.dims.n_layers,))

    def _mean(self, inputs: HeadInputs) -> Tensor:
        weight = inputs.vlm.mask[..., None].to(self.out.weight.dtype)
        x = (inputs.vlm.hidden[self.dims.n_layers] * weight).sum(1) / weight.sum(1)
        if inputs.state is not None:
            x = torch.cat([x, inputs.state.to(x.dtype)], -1)
        return self.out(x).unflatten(-1, (self.dims.horizon, self.dims.action_dim))

    def forward(
        self,
        inputs: HeadInputs,
        actions: Tensor,
        mask: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Terms:
        """Masked mean absolute error."""
        error = (self._mean(inputs).float() - actions).abs() * mask
        terms = {"action_l1": error.sum() / mask.sum().clamp(min=1)}
        if inputs.rows:
            terms[ROWS] = torch.stack([error.detach().sum((1, 2)), mask.sum((1, 2)).float()], 1)
        return terms

    def sample(self, inputs: HeadInputs, noise: Tensor, steps: int | None = None) -> Tensor:
        """``[B, T, A]``."""
        return self._mean(inputs).float() + self.config.noise_scale * noise


class register_fakes(AbstractContextManager[None]):
    """Within the block (or until ``close``), ``fake`` names :class:`FakeVLM` and :class:`FakeHead`."""

    def __enter__(self) -> None:
        self._undo = [override("vla.vlms", "fake", FakeVLM), override("vla.heads", "fake", FakeHead)]

    def __exit__(self, *args: object) -> None:
        for undo in self._undo:
            undo()


def tiny_policy(spec: RobotSpec | None = None, seed: int = 0) -> VLAPolicy:
    """A policy of fake parts for ``spec``, in eval mode.

    Its checkpoint loads inside :class:`register_fakes`.
    """
    spec = spec or make_spec()
    config = FrameworkConfig(
        name="Fake",
        horizon=spec.action.horizon,
        vlm={"name": "fake"},
        head={"name": "fake"},
        transforms=[{"name": "normalize"}],
    )
    with torch.random.fork_rng(devices=[]), register_fakes():
        torch.manual_seed(seed)
        return build_policy(config, {spec.embodiment: spec}).eval()
