"""The layerwise flow-matching head: a DiT whose block i reads layer i of the backbone.

Shape legend: B rows, R repeats (noise draws that share an observation), T action steps, A action
dims, L own tokens = [state | future | actions], S context tokens, H hidden size, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.errors import UserError
from vla_core.interfaces import HeadDims, HeadInputs, PromptSpec, Terms, VLMRequest

from vla_heads import flow
from vla_heads.embeddings import MLP, ActionEncoder, TimestepEmbedder
from vla_heads.layerwise_fm.block import AdaLN, DiTBlock, KeysValues, init_weights
from vla_heads.layerwise_fm.config import LayerwiseFMConfig, resolve
from vla_heads.losses import check_targets, masked_mean, masked_state


@dataclass
class Prepared:
    """What an observation contributes, computed once and read by every step and repeat.

    Args:
        context: keys and values ``[B, n, S, d]`` of each block.
        context_mask: bool ``[B, 1, 1, S]``.
        prefix: state and future tokens ``[B, P, W]``.
    """

    context: tuple[KeysValues, ...]
    context_mask: Tensor
    prefix: Tensor


@dataclass
class TimeCondition:
    """What a time contributes; independent of the observation, so a fixed grid needs it only once.

    Args:
        actions: time half of the action encoder ``[..., W]``.
        modulations: AdaLN scale and shift ``[..., 2W]`` of each block and of the final norm.
    """

    actions: Tensor
    modulations: tuple[Tensor, ...]

    def at(self, index: int) -> TimeCondition:
        """The entry ``index`` of a grid, shaped ``[1, 1, ...]`` to broadcast over rows and repeats."""
        pick = slice(index, index + 1)
        return TimeCondition(self.actions[None, pick], tuple(m[None, pick] for m in self.modulations))


class LayerwiseFM(nn.Module):
    """Flow matching with one DiT block per backbone layer (as in pi0's family, arXiv 2410.24164).

    Cost per observation, in FLOP, with K blocks, W = H: ``4 K S W^2`` for the context once, then for
    each repeat (training) or denoise step (sampling) ``K L (28 W^2 + 4 W (S + L))``.
    """

    Config: ClassVar[type] = LayerwiseFMConfig
    prompt: PromptSpec = PromptSpec()

    def __init__(self, config: LayerwiseFMConfig, dims: HeadDims) -> None:
        super().__init__()
        sizes = resolve(config, dims)
        self.config, self.dims, self.layers = config, dims, sizes.layers
        width = sizes.width
        self.blocks = nn.ModuleList(
            DiTBlock(width, sizes.n_heads, dims.hidden_size, config.use_concat_cross_context, config.dropout)
            for _ in range(sizes.n_blocks)
        )
        self.time = TimestepEmbedder(width)
        self.action_encoder = ActionEncoder(dims.action_dim, width)
        self.action_position = nn.Parameter(torch.empty(dims.horizon, width))
        self.future = (
            nn.Parameter(torch.empty(config.n_future_tokens, width)) if config.n_future_tokens else None
        )
        self.state_encoder = MLP(dims.state_dim, config.state_hidden, width) if dims.state_dim else None
        self.context_in = nn.Linear(dims.context_dim, dims.hidden_size) if dims.context_dim else None
        self.final_norm = AdaLN(width)
        self.final = nn.Linear(width, width)
        self.final_dropout = nn.Dropout(config.dropout)
        self.decoder = MLP(width, config.decoder_hidden, dims.action_dim)
        self._init_weights()

    def _init_weights(self) -> None:
        n_residuals = len(self.blocks) * (2 if self.config.use_concat_cross_context else 3)
        init_weights(self, n_residuals**-0.5)
        for parameter in (self.action_position, self.future):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)
        # Velocity 0 is the best guess before anything is learned; the first step wakes the rest.
        nn.init.zeros_(self.decoder.down.weight)

    @classmethod
    def build(cls, config: LayerwiseFMConfig, dims: HeadDims) -> LayerwiseFM:
        """Build for a backbone and robot of the given sizes.

        Raises:
            ConfigError: see :func:`~vla_heads.layerwise_fm.config.resolve`.
        """
        return cls(config, dims)

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest:
        """The K selected hidden states; the same for training and sampling."""
        return VLMRequest(layers=self.layers)

    def prepare(self, inputs: HeadInputs) -> Prepared:
        """Encode the observation: context keys and values, state and future tokens.

        Raises:
            UserError: state or head context missing, unexpected or of the wrong width.
        """
        extra, mask = self._extra_context(inputs)
        keys_values = []
        for i, (layer, block) in enumerate(zip(self.layers, self._dit_blocks(), strict=True)):
            context = inputs.vlm.hidden[layer].to(self._dtype)
            if extra:
                context = torch.cat([context, extra[i % len(extra)]], dim=1)
            if self.config.normalize_vl_hidden:
                context = F.layer_norm(context, context.shape[-1:]).to(self._dtype)
            keys_values.append(block.project_context(context))
        # A row without any context attends to all of it evenly: finite, where softmax would give NaN.
        mask = mask | ~mask.any(dim=1, keepdim=True)
        return Prepared(tuple(keys_values), mask[:, None, None, :], self._prefix(inputs, mask.shape[0]))

    def condition(self, bucket: Tensor) -> TimeCondition:
        """Everything that depends on the time alone, for long buckets ``[...]``."""
        embedding = self.time(bucket)
        layers = [*(block.ada.modulation for block in self._dit_blocks()), self.final_norm.modulation]
        return TimeCondition(
            self.action_encoder.encode_time(bucket), tuple(layer(embedding) for layer in layers)
        )

    def plan(self, steps: int | None = None) -> tuple[TimeCondition, ...]:
        """Conditions of each of ``steps`` Euler steps (None: the config's), for reuse by :meth:`sample`."""
        steps = self.config.steps if steps is None else steps
        if steps < 1:
            raise UserError(f"steps: {steps} must be at least 1")
        grid = flow.bucket_grid(steps, self.config.n_buckets, self.action_position.device)
        condition = self.condition(grid)
        return tuple(condition.at(k) for k in range(steps))

    def step(self, prepared: Prepared, x: Tensor, t: Tensor | TimeCondition) -> Tensor:
        """Velocity ``[B, T, A]`` fp32 at ``x [B, T, A]`` and time ``t`` (fp32 ``[B]`` or a planned one)."""
        if isinstance(t, Tensor):
            t = self.condition(flow.bucket(t[:, None], self.config.n_buckets))
        return self._velocity(prepared, x[:, None], t, None)[:, 0]

    def sample(
        self,
        inputs: HeadInputs,
        noise: Tensor,
        steps: int | None = None,
        plan: Sequence[TimeCondition] | None = None,
    ) -> Tensor:
        """Integrate from ``noise [B, T, A]`` to normalised actions ``[B, T, A]`` fp32 by Euler steps.

        ``plan`` from :meth:`plan` skips the time embedding; it must be made anew when weights change.
        """
        if tuple(noise.shape[1:]) != (self.dims.horizon, self.dims.action_dim):
            raise UserError(
                f"noise: shape {list(noise.shape)} must be [B, {self.dims.horizon}, {self.dims.action_dim}]"
            )
        plan = self.plan(steps) if plan is None else plan
        prepared = self.prepare(inputs)
        x = noise.float()
        for condition in plan:
            x = x + self.step(prepared, x, condition) / len(plan)
        return x

    def forward(
        self,
        inputs: HeadInputs,
        actions: Tensor,
        mask: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Terms:
        """Flow-matching loss, mean over valid entries (and repeats).

        Args:
            inputs: the observation.
            actions: normalised targets ``[B, T, A]``.
            mask: bool ``[B, T, A]``. Masked dims are zero in the network's input; steps masked in all
                dims are attended to by nobody.
            noise: fp32 ``[B, R, T, A]``, or ``[B * R, T, A]`` with a row's repeats adjacent; R may
                differ from the config's. None: N(0, 1) from torch's default generator.
            time: fp32 in [0, 1], ``[B, R]`` or ``[B * R]``. None: drawn as the config says.

        Returns:
            ``{"action_loss": scalar fp32}``.
        """
        check_targets(actions, mask, self.dims.horizon, self.dims.action_dim)
        config = self.config
        noise, time = flow.draws(
            actions, noise, time, config.repeated_diffusion_steps, config.time_alpha, config.time_s
        )
        # where, not multiplication: padding may be NaN, and 0 * NaN is NaN.
        x, target = flow.interpolate(
            torch.where(mask, actions.float(), 0.0)[:, None], torch.where(mask[:, None], noise, 0.0), time
        )
        prepared = self.prepare(inputs)
        condition = self.condition(flow.bucket(time, config.n_buckets))
        valid_steps = mask.any(dim=-1)
        seen = torch.cat([valid_steps.new_ones(prepared.prefix.shape[:2]), valid_steps], dim=1)
        velocity = self._velocity(prepared, x, condition, seen[:, None, None, :])
        return {"action_loss": masked_mean((velocity - target).square(), mask[:, None])}

    def _velocity(
        self, prepared: Prepared, x_BRTA: Tensor, time: TimeCondition, token_mask: Tensor | None
    ) -> Tensor:
        actions = self.action_encoder(x_BRTA, time.actions) + self.action_position
        prefix = prepared.prefix[:, None].expand(-1, x_BRTA.shape[1], -1, -1)
        x = torch.cat([prefix, actions.to(prefix.dtype)], dim=2)
        for block, context, modulation in zip(
            self.blocks, prepared.context, time.modulations[:-1], strict=True
        ):
            x = block(x, context, prepared.context_mask, modulation, token_mask)
        x = self.final_norm(x[:, :, -self.dims.horizon :], time.modulations[-1])
        return self.decoder(self.final_dropout(self.final(x))).float()

    def _prefix(self, inputs: HeadInputs, rows: int) -> Tensor:
        """State and future tokens ``[B, P, W]``; P may be 0."""
        tokens = [self.action_position.new_empty(rows, 0, self.action_position.shape[-1])]
        state = masked_state(inputs.state, inputs.state_mask, self.dims.state_dim)
        if state is not None and self.state_encoder is not None:
            tokens.append(self.state_encoder(state)[:, None].to(self._dtype))
        if self.future is not None:
            tokens.append(self.future.expand(rows, -1, -1))
        return torch.cat(tokens, dim=1)

    def _extra_context(self, inputs: HeadInputs) -> tuple[list[Tensor], Tensor]:
        """Projected head context (none, one for all blocks or one per block); the whole mask ``[B, S]``."""
        context, mask = inputs.context, inputs.vlm.mask.bool()
        if (context is None) != (self.context_in is None):
            state = "missing" if context is None else "unexpected"
            raise UserError(
                f"context: {state} in HeadInputs, the head was built with context_dim "
                f"{self.dims.context_dim}; pair the head with the fusion it was built for"
            )
        if context is None or self.context_in is None:
            return [], mask
        tokens = [context.tokens] if isinstance(context.tokens, Tensor) else list(context.tokens)
        if len(tokens) not in (1, len(self.blocks)):
            raise UserError(
                f"context: tokens for {len(tokens)} layers, the head has {len(self.blocks)} blocks; "
                f"give one tensor or {len(self.blocks)}"
            )
        extra = [self.context_in(t.to(self._dtype)).to(self._dtype) for t in tokens]
        return extra, torch.cat([mask, context.mask.bool()], dim=1)

    def _dit_blocks(self) -> list[DiTBlock]:
        return cast(list[DiTBlock], list(self.blocks))

    @property
    def _dtype(self) -> torch.dtype:
        return self.action_position.dtype
