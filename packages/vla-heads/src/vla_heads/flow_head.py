"""A diffusion transformer that turns noise into actions: what all flow-matching heads share.

Shape legend: B rows, R repeats (noise draws that share an observation), T action steps, A action
dims, L own tokens = [state | future | actions], S context tokens, H hidden size, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.errors import UserError
from vla_core.interfaces import Constraint, HeadDims, HeadInputs, PromptSpec, Terms, VLMRequest

from vla_heads import flow, sampling
from vla_heads.context import context_projection, extra_context, joint_mask
from vla_heads.dit import AdaLN, Block, KeysValues, init_weights
from vla_heads.embeddings import MLP, ActionEncoder, TimestepEmbedder
from vla_heads.flow_config import FlowConfig
from vla_heads.losses import action_terms, check_targets, masked_state
from vla_heads.prepared import Prepared
from vla_heads.time_condition import KeptPlans, Plan, TimeCondition


class FlowHead(nn.Module):
    """Base of the flow-matching heads: ``blocks`` over ``[state | future | actions]``, final AdaLN, decoder.

    Args:
        config: the shared choices.
        dims: sizes of backbone and robot.
        blocks: the transformer; each reads a context or none.
        reads: for each block the backbone layer it reads, or None.
        width: width W of the blocks.
        out_width: width between the final projection and the decoder.
        normalize: LayerNorm without parameters on the context before the blocks project it.
        n_embodiments: state encoder, action encoder and decoder have weights for each of so many
            embodiments; None: one set for all.
        read_out: final AdaLN and projection before the decoder; without, ``out_width`` is the width.
    """

    prompt: PromptSpec = PromptSpec()
    config: FlowConfig

    def __init__(
        self,
        config: FlowConfig,
        dims: HeadDims,
        blocks: Sequence[Block],
        reads: Sequence[int | None],
        width: int,
        out_width: int,
        normalize: bool,
        n_embodiments: int | None = None,
        read_out: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.dims, self.reads, self.normalize = config, dims, tuple(reads), normalize
        self.traits = replace(sampling.traits(config), per_embodiment=(n_embodiments or 1) > 1)
        self.layers = tuple(sorted({layer for layer in reads if layer is not None}))
        self.blocks = nn.ModuleList(blocks)
        self.time, self._plans = TimestepEmbedder(width), KeptPlans()
        self.action_encoder = ActionEncoder(dims.action_dim, width, n_embodiments)
        self.action_position = nn.Parameter(torch.empty(dims.horizon, width))
        self.future = (
            nn.Parameter(torch.empty(config.n_future_tokens, width)) if config.n_future_tokens else None
        )
        self.state_encoder = (
            MLP(dims.state_dim, config.state_hidden, width, n_categories=n_embodiments)
            if dims.state_dim
            else None
        )
        self.context_in = context_projection(dims)
        self.final_norm = AdaLN(width) if read_out else None
        self.final = nn.Linear(width, out_width) if read_out else None
        self.final_dropout = nn.Dropout(config.dropout)
        self.decoder = MLP(out_width, config.decoder_hidden, dims.action_dim, n_categories=n_embodiments)
        init_weights(self)
        for parameter in (self.action_position, self.future):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)
        # Velocity 0 is the best guess before anything is learned; the first step wakes the rest.
        nn.init.zeros_(self.decoder.down.weight)

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest:
        """The hidden states the blocks read; the same for training and sampling."""
        return VLMRequest(layers=self.layers)

    def prepare(self, inputs: HeadInputs) -> Prepared:
        """Encode the observation: context keys and values, state and future tokens.

        Raises:
            UserError: state, head context or embodiment missing, unexpected or of the wrong width.
        """
        readers = sum(layer is not None for layer in self.reads)
        extra = extra_context(inputs, self.context_in, readers, self._dtype)
        mask = joint_mask(inputs.vlm.mask.bool(), inputs)
        keys_values: list[KeysValues | None] = []
        source: tuple[int, int] | None = None
        context: Tensor = self.action_position
        i = 0
        for layer, block in zip(self.reads, self._dit_blocks(), strict=True):
            if layer is None:
                keys_values.append(None)
                continue
            which = (layer, i % len(extra)) if extra else (layer, 0)
            if which != source:  # blocks that read the same share what is done to it
                source = which
                context = self._context(inputs.vlm.hidden[layer], extra[which[1]] if extra else None)
            keys_values.append(block.project_context(context))
            i += 1
        prefix = self._prefix(inputs, mask.shape[0])
        return Prepared(tuple(keys_values), mask, prefix, inputs.embodiment)

    def _context(self, hidden: Tensor, extra: Tensor | None) -> Tensor:
        context = hidden.to(self._dtype)
        if extra is not None:
            context = torch.cat([context, extra], dim=1)
        if self.normalize:
            context = F.layer_norm(context, context.shape[-1:]).to(self._dtype)
        return context

    def condition(self, bucket: Tensor) -> TimeCondition:
        """Everything that depends on the time alone, for long buckets ``[...]``."""
        embedding = self.time(bucket)
        layers = [block.ada.modulation for block in self._dit_blocks()]
        if self.final_norm is not None:
            layers.append(self.final_norm.modulation)
        return TimeCondition(
            self.action_encoder.encode_time(bucket), tuple(layer(embedding) for layer in layers)
        )

    def plan(self, steps: int | None = None) -> Plan:
        """Conditions of each of ``steps`` Euler steps (None: the config's), for reuse by :meth:`sample`."""
        steps = self.config.steps if steps is None else steps
        if steps < 1:
            raise UserError(f"steps: {steps} must be at least 1")
        return self._plans.get(steps, lambda: self._make_plan(steps))

    def _make_plan(self, steps: int) -> Plan:
        condition = self.condition(
            flow.bucket_grid(steps, self.config.n_buckets, self.action_position.device)
        )
        return tuple(condition.at(k) for k in range(steps))

    def read_once(self) -> Iterator[nn.Module]:
        """What plans are made of, which are kept when the head is packed (see :mod:`vla_core.packing`)."""
        yield self.time
        if not self.action_encoder.n_categories:  # else a row has its own, and mixes anew
            yield self.action_encoder.mix_time
        yield from (part.modulation for part in self.modules() if isinstance(part, AdaLN))

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
        constraint: Constraint | None = None,
        plan: Sequence[TimeCondition] | None = None,
    ) -> Tensor:
        """Integrate from ``noise [B, T, A]`` to normalised actions ``[B, T, A]`` fp32 by Euler steps.

        Dims a row does not have (``inputs.action_dims``) are 0, as in training.

        Args:
            inputs: the observation.
            noise: one draw per row.
            steps: Euler steps; None takes the config's.
            constraint: what of an earlier chunk to keep, the way ``config.rtc`` says. Frozen steps
                come back exactly.
            plan: from :meth:`plan`, skips the time embedding; make it anew when weights change.

        Raises:
            UserError: shapes that do not fit, or more frozen steps than the head was trained for.
        """
        sampling.check(noise, constraint, (self.dims.horizon, self.dims.action_dim), self.config)
        grid = tuple(self.plan(steps) if plan is None else plan)
        dims, n = inputs.action_dims, len(grid)
        noise = noise if dims is None else torch.where(dims[:, None], noise, 0.0)
        prepared = self.prepare(inputs)
        if constraint is None:
            field = self._field(prepared, grid)
        elif self.config.rtc == "training_time":
            clean, frozen = self._clean(), constraint.frozen[:, None]
            grid = tuple(condition.freeze(frozen, clean) for condition in grid)
            field = sampling.held(self._field(prepared, grid), constraint)
        else:
            with torch.inference_mode(False):
                prepared, grid = sampling.for_gradient(prepared), sampling.for_gradient(grid)
            field = self._field(prepared, grid)
            field = sampling.guided(field, constraint, dims, n, self.config.rtc_max_guidance)
        actions = sampling.euler(sampling.padded(field, dims), noise, n)
        return actions if constraint is None else sampling.keep(constraint, actions)

    def _field(self, prepared: Prepared, grid: Plan) -> sampling.Field:
        return lambda x, k: self.step(prepared, x, grid[k])

    def _clean(self) -> TimeCondition:
        """The condition of actions without noise: time 1, ``[1, 1, ...]``."""
        one = torch.ones(1, 1, device=self.action_position.device)
        return self._plans.get(0, lambda: (self.condition(flow.bucket(one, self.config.n_buckets)),))[0]

    def forward(
        self,
        inputs: HeadInputs,
        actions: Tensor,
        mask: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
        delay: Tensor | None = None,
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
            delay: long ``[B, R]``, so many first steps are given clean and leave the loss. None: none,
                or while training with ``rtc_max_delay`` uniform in 0..rtc_max_delay.

        Returns:
            ``{"action_loss": scalar fp32}``.
        """
        check_targets(actions, mask, self.dims.horizon, self.dims.action_dim)
        config = self.config
        noise, time = flow.draws(
            actions, noise, time, config.repeated_diffusion_steps, config.time_alpha, config.time_s
        )
        # where, not multiplication: padding may be NaN, and 0 * NaN is NaN.
        actions, noise = (
            torch.where(mask, actions.float(), 0.0)[:, None],
            torch.where(mask[:, None], noise, 0.0),
        )
        x, target, buckets = self.path(inputs, actions, noise, time)
        prepared = self.prepare(inputs)
        condition = self.condition(buckets)
        counted = mask[:, None]
        if delay is None and self.training and config.rtc_max_delay:
            delay = flow.sample_delay(tuple(time.shape), time.device, config.rtc_max_delay)
        if delay is not None:
            frozen = torch.arange(x.shape[2], device=x.device) < delay.reshape(time.shape)[..., None]
            x = torch.where(frozen[..., None], actions, x)
            condition = condition.freeze(frozen, self._clean())
            counted = counted & ~frozen[..., None]
        valid_steps = mask.any(dim=-1)
        seen = torch.cat([valid_steps.new_ones(prepared.prefix.shape[:2]), valid_steps], dim=1)
        velocity = self._velocity(prepared, x, condition, seen[:, None, None, :])
        return action_terms((velocity - target).square(), counted, inputs.rows)

    def path(
        self, inputs: HeadInputs, actions: Tensor, noise: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Point on the path, its velocity (fp32 ``[B, R, T, A]``) and the time's bucket ``[B, R]``."""
        x, target = flow.interpolate(actions, noise, time)
        return x, target, flow.bucket(time, self.config.n_buckets)

    def _velocity(
        self, prepared: Prepared, x_BRTA: Tensor, time: TimeCondition, token_mask: Tensor | None
    ) -> Tensor:
        actions = self.action_encoder(x_BRTA, time.of_actions(), prepared.embodiment) + self.action_position
        prefix = prepared.prefix[:, None].expand(-1, x_BRTA.shape[1], -1, -1)
        x = torch.cat([prefix, actions.to(prefix.dtype)], dim=2)
        for i, (block, context) in enumerate(zip(self.blocks, prepared.context, strict=True)):
            x = block(x, context, prepared.context_mask, time.of_block(i, x.shape[2]), token_mask)
        x = x[:, :, -self.dims.horizon :]
        if self.final_norm is not None and self.final is not None:
            x = self.final(self.final_norm(x, time.of_block(-1, self.dims.horizon)))
        return self.decoder(self.final_dropout(x), prepared.embodiment).float()

    def _prefix(self, inputs: HeadInputs, rows: int) -> Tensor:
        """State and future tokens ``[B, P, W]``; P may be 0."""
        tokens = [self.action_position.new_empty(rows, 0, self.action_position.shape[-1])]
        state = masked_state(inputs.state, inputs.state_mask, self.dims.state_dim)
        if state is not None and self.state_encoder is not None:
            tokens.append(self.state_encoder(state, inputs.embodiment)[:, None].to(self._dtype))
        if self.future is not None:
            tokens.append(self.future.expand(rows, -1, -1))
        return torch.cat(tokens, dim=1)

    def _dit_blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    @property
    def _dtype(self) -> torch.dtype:
        return self.action_position.dtype
