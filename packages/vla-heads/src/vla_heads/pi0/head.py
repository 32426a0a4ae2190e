"""The action expert of pi0 (arXiv 2410.24164) and pi0.5 (arXiv 2504.16054).

Shape legend: B rows, R repeats (noise draws that share an observation), T action steps, A the robot's
action dims, D those of the noise, L own tokens = [state | actions], K times a row (1, or T),
S prefix tokens, W width.

Time is that of all flow heads here: t = 0 is noise, t = 1 actions, velocity ``actions - noise``. The
published models count the other way. Their network is kept as it is: it reads the noise level
``1 - t``, and its output is the negative of the velocity.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.errors import UserError
from vla_core.interfaces import Constraint, HeadDims, HeadInputs, PromptSpec, Terms, VLMRequest

from vla_heads import flow, sampling
from vla_heads.losses import action_terms, check_targets, masked_state
from vla_heads.pi0.config import PI0Config, resolve
from vla_heads.pi0.expert import Expert, RMSNorm, rotation
from vla_heads.pi0.prepared import Prepared


class PI0Head(nn.Module):
    """Flow matching by a Gemma decoder that attends, layer by layer, to what the backbone attended to.

    The state token (``pi0``) sees the prefix and itself, action tokens see everything. A robot without
    state has a state token all the same, of zeros.
    """

    Config: ClassVar[type] = PI0Config
    prompt: PromptSpec = PromptSpec()

    def __init__(self, config: PI0Config, dims: HeadDims) -> None:
        super().__init__()
        sizes, width = resolve(config, dims), config.width
        self.config, self.dims, self.sizes = config, dims, sizes
        self.has_state = config.variant == "pi0"
        # D = A + spare: the network's action dims where those that the robot lacks hold noise, else A.
        self.spare = sizes.action_dim - dims.action_dim if config.spare_dims == "noise" else 0
        self.traits = sampling.traits(config, dims.action_dim + self.spare if self.spare else None)
        self.action_in_proj = nn.Linear(sizes.action_dim, width)
        self.action_out_proj = nn.Linear(width, sizes.action_dim)
        if self.has_state:
            self.state_proj = nn.Linear(max(sizes.state_dim, 1), width)
            self.action_time_mlp_in = nn.Linear(2 * width, width)
            self.action_time_mlp_out = nn.Linear(width, width)
        else:
            self.time_mlp_in = nn.Linear(width, width)
            self.time_mlp_out = nn.Linear(width, width)
        self.expert = Expert(dims.n_layers, width, config.mlp_width, sizes.kv, adaptive=not self.has_state)
        self._init_weights()

    @classmethod
    def build(cls, config: PI0Config, dims: HeadDims) -> PI0Head:
        """Build for a backbone and robot of the given sizes.

        Raises:
            ConfigError: see :func:`~vla_heads.pi0.config.resolve`.
        """
        return cls(config, dims)

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest:
        """Keys and values of every layer; the same for training and sampling."""
        return VLMRequest(kv=tuple(range(1, self.dims.n_layers + 1)))

    def prepare(self, inputs: HeadInputs) -> Prepared:
        """Collect what the own tokens attend to, and encode the state.

        Raises:
            UserError: keys and values or state missing, or of the wrong size.
        """
        out, wanted = inputs.vlm, range(1, self.dims.n_layers + 1)
        missing = [layer for layer in wanted if layer not in out.kv]
        if missing:
            raise UserError(f"vlm.kv: layers {missing} are missing; the backbone must serve VLMRequest.kv")
        dtype, mask = self.action_in_proj.weight.dtype, out.mask.bool()
        prefix = tuple((out.kv[i][0].to(dtype), out.kv[i][1].to(dtype)) for i in wanted)
        if out.position_ids is None:
            start = mask.sum(dim=1)
        else:
            start = torch.where(mask, out.position_ids, -1).amax(dim=(0, 2)) + 1
        own = torch.arange(self.dims.horizon + self.has_state, device=mask.device)
        kv = self.sizes.kv
        by = rotation(start[:, None] + own, kv.head_dim, kv.rope_theta)
        return Prepared(prefix, mask, by, self._state(inputs, mask) if self.has_state else None)

    def step(self, prepared: Prepared, x: Tensor, t: Tensor) -> Tensor:
        """Velocity ``[B, T, D]`` fp32 at ``x [B, T, D]`` and time ``t``, fp32 ``[B]`` (or one for each step,
        ``[B, T]``)."""
        level = 1.0 - (t if t.ndim == 2 else t[:, None])
        mask = self._mask(prepared.mask, None)
        return self._velocity(prepared, x, self._time_features(level), mask)

    def sample(
        self,
        inputs: HeadInputs,
        noise: Tensor,
        steps: int | None = None,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """Integrate from ``noise [B, T, D]`` to normalised actions ``[B, T, A]`` fp32 by Euler steps.

        Dims a row does not have (``inputs.action_dims``) are 0, as in training.

        Args:
            inputs: the observation; what the backbone computed is read by all steps.
            noise: one draw per row.
            steps: Euler steps; None takes the config's.
            constraint: what of an earlier chunk to keep, the way ``config.rtc`` says. Frozen steps
                come back exactly.

        Raises:
            UserError: shapes that do not fit, or more frozen steps than the head was trained for.
        """
        wide, dims = self.spare, inputs.action_dims
        if constraint is not None:
            constraint = replace(constraint, actions=F.pad(constraint.actions, (0, wide)))
        sampling.check(noise, constraint, (self.dims.horizon, self.dims.action_dim + wide), self.config)
        n = self.config.steps if steps is None else steps
        if n < 1:
            raise UserError(f"steps: {n} must be at least 1")
        still = None if self.config.spare_dims == "noise" else dims
        noise = noise if still is None else torch.where(still[:, None], noise, 0.0)
        prepared = self.prepare(inputs)
        # All steps and time 1 at once, and one mask for all: neither depends on the actions so far.
        levels = [torch.full((1, 1), 1.0 - k / n, device=noise.device) for k in range(n + 1)]
        given = (prepared, self._time_features(torch.cat(levels)), self._mask(prepared.mask, None))
        if constraint is None:
            field = self._field(*given)
        elif self.config.rtc == "training_time":
            field = sampling.held(self._field(*given, constraint.frozen), constraint)
        else:
            with torch.inference_mode(False):
                given = sampling.for_gradient(given)
            bound = self._bound(dims, noise)
            field = sampling.guided(self._field(*given), constraint, bound, n, self.config.rtc_max_guidance)
        actions = sampling.euler(sampling.padded(field, still), noise, n)
        actions = actions if constraint is None else sampling.keep(constraint, actions)
        actions = actions[..., : self.dims.action_dim]
        return actions if dims is None else torch.where(dims[:, None], actions, 0.0)

    def _bound(self, dims: Tensor | None, noise: Tensor) -> Tensor | None:
        """Bool ``[B, D]``: the dims that a constraint speaks of; None: all."""
        wide = self.spare
        if dims is None and wide:
            dims = torch.ones(noise.shape[0], self.dims.action_dim, dtype=torch.bool, device=noise.device)
        return dims if dims is None else F.pad(dims, (0, wide))

    def _field(
        self, prepared: Prepared, features: Tensor, mask: Tensor, frozen: Tensor | None = None
    ) -> sampling.Field:
        """``features [n + 1, 1, W]`` of the noise levels of the steps, and of none."""

        def field(x: Tensor, k: int) -> Tensor:
            step = features[k : k + 1]
            if frozen is not None:
                step = torch.where(frozen[..., None], features[-1:], step)
            return self._velocity(prepared, x, step, mask)

        return field

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
            mask: bool ``[B, T, A]``. Masked dims are zero in the network's input (unless ``spare_dims``
                says otherwise); steps masked in all dims are attended to by nobody else.
            noise: fp32 ``[B, R, T, D]``, or ``[B * R, T, D]`` with a row's repeats adjacent; R may
                differ from the config's. None: N(0, 1) from torch's default generator.
            time: fp32 in [0, 1], ``[B, R]`` or ``[B * R]``; 1 is clean. None: drawn as the config says.
            delay: long ``[B, R]``, so many first steps are given clean and leave the loss. None: none,
                or while training with ``rtc_max_delay`` uniform in 0..rtc_max_delay.

        Returns:
            ``{"action_loss": scalar fp32}``.
        """
        check_targets(actions, mask, self.dims.horizon, self.dims.action_dim)
        config, rows, wide = self.config, actions.shape[0], self.spare
        # where, not multiplication: padding may be NaN, and 0 * NaN is NaN.
        actions = F.pad(torch.where(mask, actions.float(), 0.0), (0, wide))
        if time is None:
            given = rows > 0 and noise is not None
            repeats = noise.numel() // actions.numel() if given and noise is not None else None
            time = self._draw_time((rows, repeats or config.repeated_diffusion_steps), actions.device)
        noise, time = flow.draws(
            actions, noise, time, config.repeated_diffusion_steps, config.time_alpha, 1.0
        )
        noisy = mask if config.spare_dims == "zero" else mask | ~mask.any(dim=1, keepdim=True)
        noise = torch.where(F.pad(noisy, (0, wide), value=True)[:, None], noise, 0.0)
        actions = actions[:, None]
        x, target = flow.interpolate(actions, noise, time)
        counted, level = F.pad(mask, (0, wide))[:, None], 1.0 - time[..., None]
        if delay is None and self.training and config.rtc_max_delay:
            delay = flow.sample_delay(tuple(time.shape), time.device, config.rtc_max_delay)
        if delay is not None:
            frozen = torch.arange(x.shape[2], device=x.device) < delay.reshape(time.shape)[..., None]
            x = torch.where(frozen[..., None], actions, x)
            level = torch.where(frozen, 0.0, level)
            counted = counted & ~frozen[..., None]
        repeats = time.shape[1]
        seen = mask.any(dim=-1).repeat_interleave(repeats, dim=0)
        prepared = self.prepare(inputs).repeat(repeats)
        features, own = self._time_features(level.flatten(0, 1)), self._mask(prepared.mask, seen)
        velocity = self._velocity(prepared, x.flatten(0, 1), features, own).view_as(x)
        return action_terms((velocity - target).square(), counted, inputs.rows)

    def _draw_time(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Times of the noise levels ``Beta(time_alpha, 1) (1 - offset) + offset``, fp32."""
        return flow.sample_time(shape, device, self.config.time_alpha, 1.0) * (1.0 - self.config.time_offset)

    def _velocity(self, prepared: Prepared, x: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Velocity at ``x [N, T, D]`` and a noise level of which ``features`` are ``[N or 1, K, W]``."""
        padding = self.sizes.action_dim - x.shape[-1]
        dtype = self.action_in_proj.weight.dtype
        tokens = self.action_in_proj(F.pad(x, (0, padding)).to(dtype))
        features = features.to(dtype)
        condition = None
        if prepared.state is None:
            condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(features))))
        else:
            both = torch.cat([tokens, features.expand_as(tokens)], dim=-1)
            tokens = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))
            tokens = torch.cat([prepared.state.to(tokens.dtype), tokens], dim=1)
        hidden = self.expert(tokens, prepared.prefix, mask, prepared.rotation, condition)
        level_field = self.action_out_proj(hidden[:, -self.dims.horizon :].to(dtype))
        return -level_field[..., : x.shape[-1]].float()

    def _mask(self, prefix: Tensor, seen: Tensor | None) -> Tensor:
        """Bool ``[N, 1, L, S + L]``: which keys an own token reads; ``seen`` bool ``[N, T]``: valid steps."""
        length = self.dims.horizon + self.has_state
        rows, device = prefix.shape[0], prefix.device
        token = torch.arange(length, device=device)
        own = ((token >= self.has_state)[:, None] | (token < self.has_state)[None]).expand(rows, -1, -1)
        if seen is not None:
            # A token always reads itself: a row of the mask without any key would give NaN.
            own = own & F.pad(seen, (length - self.dims.horizon, 0), value=True)[:, None]
            own = own | (token[:, None] == token)
        return torch.cat([prefix[:, None].expand(-1, length, -1), own], dim=-1)[:, None]

    def _time_features(self, level: Tensor) -> Tensor:
        """Sines and cosines ``[..., W]`` fp32 of noise levels; periods from min_period to max_period."""
        # fp64: the fastest one turns 250 times in [0, 1], where an angle in fp32 is off by 1e-4.
        config, f64 = self.config, torch.float64
        fraction = torch.linspace(0.0, 1.0, config.width // 2, device=level.device, dtype=f64)
        period = config.min_period * (config.max_period / config.min_period) ** fraction
        angle = level[..., None].to(f64) * (2 * math.pi / period)
        return torch.cat([angle.sin(), angle.cos()], dim=-1).float()

    def _state(self, inputs: HeadInputs, mask: Tensor) -> Tensor:
        weight = self.state_proj.weight
        state = masked_state(inputs.state, inputs.state_mask, self.dims.state_dim)
        if state is None:
            state = weight.new_zeros(mask.shape[0], 0)
        padded = F.pad(state, (0, weight.shape[1] - state.shape[-1])).to(weight.dtype)
        return self.state_proj(padded)[:, None]

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, RMSNorm) and module.adaptive:
                nn.init.zeros_(module.dense.weight)
        # Velocity 0 is the best guess before anything is learned; the first step wakes the rest.
        nn.init.zeros_(self.action_out_proj.weight)
