"""Adapter head: action tokens that read vision and query states of the backbone's layers.

Shape legend: B rows, T action steps, A action dims, D state dims, S backbone tokens, Q queries,
H hidden size, W width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from vla_core.interfaces import ActionHead, HeadDims, HeadInputs, PromptSpec, Terms, VLMRequest
from vla_core.traits import HeadTraits

from vla_heads.adapter.block import AdapterBlock
from vla_heads.adapter.config import AdapterHeadConfig, resolve
from vla_heads.compat import choose
from vla_heads.context import context_projection, extra_context, joint_mask
from vla_heads.embeddings import MLP
from vla_heads.losses import action_terms, check_targets, masked_state


class AdapterHead(nn.Module):
    """Regression of a whole chunk by a small bridge network (VLA-Adapter, arXiv 2509.09372). L1 loss.

    Learned query tokens go through the backbone and gather what matters for acting. T learned action
    tokens then pass the adapter blocks; each reads query states and vision tokens of one layer.
    Deterministic: ``noise``, ``time`` and ``steps`` are ignored.
    """

    Config: ClassVar[type] = AdapterHeadConfig
    traits: HeadTraits = HeadTraits()

    def __init__(self, config: AdapterHeadConfig, dims: HeadDims) -> None:
        super().__init__()
        sizes = resolve(config, dims)
        self.config, self.dims, self.reads = config, dims, sizes.layers
        suffix = config.suffix.replace("{horizon}", str(dims.horizon))
        self.prompt = PromptSpec(suffix=suffix, n_query=config.n_queries)
        self.queries = nn.Embedding(config.n_queries, dims.hidden_size)
        self.state_encoder = (
            MLP(dims.state_dim, config.state_hidden, dims.hidden_size) if dims.state_dim else None
        )
        self.context_in = context_projection(dims)
        self.action_tokens = nn.Parameter(torch.empty(dims.horizon, config.width))
        self.blocks = nn.ModuleList(
            AdapterBlock(config.width, sizes.n_heads, dims.hidden_size, config.dropout) for _ in self.reads
        )
        self.norm_out = nn.LayerNorm(config.width)
        self.linear_out = nn.Linear(config.width, dims.action_dim)
        nn.init.normal_(self.queries.weight, std=0.02)
        nn.init.normal_(self.action_tokens, std=0.02)
        # Start at the mean action (0 after normalisation) instead of at random commands.
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    @classmethod
    def build(cls, config: AdapterHeadConfig, dims: HeadDims) -> ActionHead:
        """Build for a backbone and robot of the given sizes; with ``compat`` a head of another system.

        Raises:
            ConfigError: see :func:`~vla_heads.adapter.config.resolve`.
        """
        head: ActionHead = choose("adapter", config.compat, cls)(config, dims)
        return head

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest:
        """The hidden states the blocks read, with the learned queries in the prompt."""
        return VLMRequest(layers=tuple(sorted(set(self.reads))), queries=self.queries)

    def predict(self, inputs: HeadInputs) -> Tensor:
        """Normalised actions ``[B, T, A]``, fp32.

        Raises:
            UserError: state or head context missing, unexpected or of the wrong width.
        """
        dtype = self.action_tokens.dtype
        extra = extra_context(inputs, self.context_in, len(self.reads), dtype)
        mask = joint_mask(inputs.vlm.spans["image"] & inputs.vlm.mask.bool(), inputs)
        state = self._state(inputs)
        x = self.action_tokens.expand(mask.shape[0], -1, -1)
        for i, (layer, block) in enumerate(zip(self.reads, self.blocks, strict=True)):
            queries = [inputs.vlm.gather("query", layer, self.config.n_queries).to(dtype), *state]
            vision = [inputs.vlm.hidden[layer].to(dtype), *([extra[i % len(extra)]] if extra else [])]
            x = block(x, torch.cat(queries, dim=1), torch.cat(vision, dim=1), mask)
        return self.linear_out(self.norm_out(x)).float()

    def forward(
        self,
        inputs: HeadInputs,
        actions: Tensor,
        mask: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Terms:
        """Masked L1: ``{"action_loss": scalar fp32}`` for ``actions``, bool ``mask`` ``[B, T, A]``."""
        check_targets(actions, mask, self.dims.horizon, self.dims.action_dim)
        return action_terms((self.predict(inputs) - actions.float()).abs(), mask, inputs.rows)

    def sample(self, inputs: HeadInputs, noise: Tensor, steps: int | None = None) -> Tensor:
        """Normalised actions ``[B, T, A]``; ``noise`` and ``steps`` are ignored."""
        return self.predict(inputs)

    def _state(self, inputs: HeadInputs) -> list[Tensor]:
        """The state as one token ``[B, 1, H]`` beside the queries; empty on a robot without state."""
        state = masked_state(inputs.state, inputs.state_mask, self.dims.state_dim)
        if state is None or self.state_encoder is None:
            return []
        return [self.state_encoder(state)[:, None].to(self.action_tokens.dtype)]
