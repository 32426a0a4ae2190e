"""Parallel regression of a whole chunk from query tokens (OpenVLA-OFT, arXiv 2502.19645).

Shape legend: B rows, T action steps, A action dims, D state dims, H hidden size, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims, HeadInputs, PromptSpec, Terms, VLMRequest
from vla_core.ranges import BelowOne, Count, Natural, check_ranges
from vla_core.traits import HeadTraits

from vla_heads.embeddings import MLP
from vla_heads.losses import action_terms, check_targets, masked_state
from vla_heads.residual import ResidualBlock


@dataclass(frozen=True)
class MLPRegressionConfig:
    """YAML node of ``mlp_regression``.

    Args:
        width: width of the residual network; null is twice the backbone's hidden size.
        n_blocks: residual blocks.
        dropout: in each residual block.
        use_state: add an encoding of the state to every query's hidden state (no effect on a robot
            without state).
        state_hidden: hidden width of the state encoder.
        suffix: prompt text between instruction and queries; ``{horizon}`` is T.
    """

    width: Count | None = None
    n_blocks: Natural = 2
    dropout: BelowOne = 0.0
    use_state: bool = True
    state_hidden: Count = 256
    suffix: str = "Please predict the next {horizon} robot actions: "


class MLPRegression(nn.Module):
    """T learned query tokens go through the backbone; an MLP reads an action off each. L1 loss.

    The queries attend to images and text inside the backbone and cost T more tokens there; the head
    itself is one small MLP per step. Deterministic: ``noise``, ``time`` and ``steps`` are ignored.
    """

    Config: ClassVar[type] = MLPRegressionConfig
    traits: HeadTraits = HeadTraits()

    def __init__(self, config: MLPRegressionConfig, dims: HeadDims) -> None:
        super().__init__()
        check_ranges(config)
        if dims.context_dim:
            raise ConfigError(
                "head: mlp_regression cannot read the head context of this fusion; use a fusion that joins "
                "vision or language, or a head that reads it (layerwise_fm, groot_flow, adapter)"
            )
        self.config, self.dims = config, dims
        self.prompt = PromptSpec(
            suffix=config.suffix.replace("{horizon}", str(dims.horizon)), n_query=dims.horizon
        )
        width = 2 * dims.hidden_size if config.width is None else config.width
        self.state_dim = dims.state_dim if config.use_state else 0
        self.queries = nn.Embedding(dims.horizon, dims.hidden_size)
        self.state_encoder = (
            MLP(self.state_dim, config.state_hidden, dims.hidden_size) if self.state_dim else None
        )
        self.norm_in = nn.LayerNorm(dims.hidden_size)
        self.linear_in = nn.Linear(dims.hidden_size, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, config.dropout) for _ in range(config.n_blocks))
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = nn.Linear(width, dims.action_dim)
        nn.init.normal_(self.queries.weight, std=0.02)
        # Start at the mean action (0 after normalisation) instead of at random commands.
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    @classmethod
    def build(cls, config: MLPRegressionConfig, dims: HeadDims) -> MLPRegression:
        """Build for a backbone and robot of the given sizes.

        Raises:
            ConfigError: too few blocks, or a fusion with head context, which this head cannot read.
        """
        return cls(config, dims)

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest:
        """The last hidden state, with the learned queries in the prompt."""
        return VLMRequest(layers=(self.dims.n_layers,), queries=self.queries)

    def predict(self, inputs: HeadInputs) -> Tensor:
        """Normalised actions ``[B, T, A]``, fp32."""
        hidden = inputs.vlm.gather("query", self.dims.n_layers, self.dims.horizon)
        x = self.norm_in(hidden.to(self.linear_in.weight.dtype))
        state = masked_state(inputs.state, inputs.state_mask, self.state_dim) if self.state_dim else None
        if state is not None and self.state_encoder is not None:
            x = x + self.state_encoder(state)[:, None]
        x = F.relu(self.linear_in(x))
        for block in self.blocks:
            x = block(x)
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
