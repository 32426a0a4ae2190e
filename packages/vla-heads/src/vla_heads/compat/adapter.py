"""``compat: starvla``: the adapter network of StarVLA's checkpoints (its repository, August 2026).

Another network than :class:`~vla_heads.adapter.AdapterHead`: in each block one softmax spans the
action tokens, the query states (with the state's token) and the tokens up to the last image token; the
feed-forward has no residual; blocks beyond the backbone's layers read nothing. Batched rows do not
change each other: StarVLA lets padding of longer rows into the softmax, so its answers to batches of
unlike lengths differ from those to single rows, which are the ones reproduced.

Shape legend: B rows, T action tokens, Q query and state tokens, S backbone tokens, A action dims,
D state dims, H hidden size of the backbone and of the action tokens, n heads, d head width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims, HeadInputs, PromptSpec, Terms, VLMRequest
from vla_core.traits import HeadTraits

from vla_heads.adapter.config import AdapterHeadConfig, resolve
from vla_heads.compat.adapter_block import StarVLAAdapterBlock
from vla_heads.losses import action_terms, check_targets, masked_state


class StarVLAAdapter(nn.Module):
    """Regression of a chunk; made by ``AdapterHead.build`` with ``compat: starvla``. L1 loss.

    Deterministic: ``noise``, ``time`` and ``steps`` are ignored.
    """

    Config: ClassVar[type] = AdapterHeadConfig
    traits: HeadTraits = HeadTraits()

    def __init__(self, config: AdapterHeadConfig, dims: HeadDims) -> None:
        super().__init__()
        if dims.context_dim or config.width != dims.hidden_size:
            what = "head context" if dims.context_dim else f"width {config.width}"
            raise ConfigError(
                f"compat: starvla has no {what}; its width is the backbone's, {dims.hidden_size}, and it "
                "takes no fusion with a head context"
            )
        n_heads = resolve(config, dims).n_heads
        self.config, self.dims = config, dims
        suffix = config.suffix.replace("{horizon}", str(dims.horizon))
        self.prompt = PromptSpec(suffix=suffix, n_query=config.n_queries)
        width, wide = config.width, dims.action_dim * config.width
        self.queries = nn.Embedding(config.n_queries, dims.hidden_size)
        self.state_up = nn.Linear(dims.state_dim, width) if dims.state_dim else None
        self.state_down = nn.Linear(width, width) if dims.state_dim else None
        self.action_tokens = nn.Parameter(torch.empty(dims.horizon, wide))
        self.norm_in, self.linear_in = nn.LayerNorm(wide), nn.Linear(wide, width)
        n_blocks = dims.n_layers if config.n_blocks is None else config.n_blocks
        self.blocks = nn.ModuleList(
            StarVLAAdapterBlock(width, n_heads, config.use_pro_version) for _ in range(n_blocks)
        )
        self.norm_out, self.linear_out = nn.LayerNorm(width), nn.Linear(width, dims.action_dim)
        nn.init.normal_(self.queries.weight, std=0.02)
        nn.init.normal_(self.action_tokens, std=0.02)

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest:
        """A layer a block, from the first on, with the learned queries in the prompt."""
        last = min(len(self.blocks), self.dims.n_layers)
        return VLMRequest(layers=tuple(range(1, last + 1)), queries=self.queries)

    def predict(self, inputs: HeadInputs) -> Tensor:
        """Normalised actions ``[B, T, A]``, fp32.

        Raises:
            UserError: state missing, unexpected or of the wrong width.
        """
        dtype, vlm = self.action_tokens.dtype, inputs.vlm
        valid = vlm.mask.bool()
        image = vlm.spans["image"] & valid
        # Everything before a row's last image token, that one included.
        seen = valid & image.flip(1).cumsum(1).flip(1).bool()
        state = masked_state(inputs.state, inputs.state_mask, self.dims.state_dim)
        extra: list[Tensor] = []
        if state is not None and self.state_up is not None and self.state_down is not None:
            hidden = F.gelu(self.state_up(state.to(dtype)))
            extra = [self.state_down(hidden)[:, None]]
        x = F.relu(self.linear_in(self.norm_in(self.action_tokens))).expand(valid.shape[0], -1, -1)
        for i, block in enumerate(self.blocks):
            layer = i + 1
            if layer not in vlm.hidden or layer > self.dims.n_layers:
                # The state's token stays where the backbone has no more layers.
                x = block(x, torch.cat(extra, dim=1) if extra else None, None, seen)
                continue
            asked = [vlm.gather("query", layer, self.config.n_queries).to(dtype), *extra]
            x = block(x, torch.cat(asked, dim=1), vlm.hidden[layer].to(dtype), seen)
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
