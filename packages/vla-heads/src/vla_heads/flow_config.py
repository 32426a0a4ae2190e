"""Choices that all flow-matching heads share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vla_core.errors import ConfigError
from vla_core.ranges import BelowOne, Count, Natural, Positive, Range, check_ranges


@dataclass(frozen=True)
class FlowConfig:
    """What :class:`~vla_heads.flow_head.FlowHead` needs to know.

    Args:
        dropout: after every attention and feed-forward, and before the decoder.
        n_future_tokens: learned tokens between state and actions (room to think).
        state_hidden: hidden width of the state encoder.
        decoder_hidden: hidden width of the action decoder.
        repeated_diffusion_steps: R, noise draws per observation in training; the context is projected
            once for all of them.
        steps: Euler steps when sampling.
        time_alpha: times are drawn from Beta(time_alpha, 1).
        time_s: upper end s of that draw, ``t = (s - b) / s``.
        n_buckets: number of integer times the network tells apart.
        compat: ``starvla`` builds the networks that StarVLA's checkpoints were trained with, its
            rounding included; ``starvla_llava3d`` (``layerwise_fm`` alone) those of its MapAnythingLlava3D
            fork (see :mod:`vla_heads.compat`). Set by ``vla-train import-starvla``.
        rtc: how a constraint is kept (real-time chunking). ``guidance`` steers any trained head by the
            gradient of its own prediction (arXiv 2506.07339): about twice the cost of a step.
            ``training_time`` gives the frozen steps clean, at time 1 (arXiv 2512.05964): no gradient, no
            cost, steps after the frozen ones are free; the head must have been trained for it.
        rtc_max_delay: trains the head for that: each draw gives the first 0..rtc_max_delay steps
            clean, and they leave the loss (0: off).
        rtc_max_guidance: bound on the weight of the guidance.
    """

    dropout: BelowOne = 0.0
    n_future_tokens: Natural = 32
    state_hidden: Count = 1024
    decoder_hidden: Count = 1024
    repeated_diffusion_steps: Count = 2
    steps: Count = 4
    time_alpha: Positive = 1.5
    time_s: Annotated[float, Range(low=0, high=1, open_low=True)] = 0.999
    n_buckets: Count = 1000
    compat: Literal["none", "starvla", "starvla_llava3d"] = "none"
    rtc: Literal["guidance", "training_time"] = "guidance"
    rtc_max_delay: Natural = 0
    rtc_max_guidance: Positive = 5.0


def check_flow(config: FlowConfig, horizon: int) -> None:
    """Raise :class:`ConfigError` for a value that cannot work, with the key's name and the fix."""
    check_ranges(config)
    if config.rtc_max_delay >= horizon:
        raise ConfigError(
            f"rtc_max_delay: {config.rtc_max_delay} must be in 0..{horizon - 1} (below the horizon)"
        )
    if config.rtc == "training_time" and not config.rtc_max_delay:
        raise ConfigError("rtc: 'training_time' needs rtc_max_delay, e.g. rtc_max_delay: 4")


def heads_of(width: int, n_heads: int | None) -> int:
    """Attention heads of a width; None is W / 64 (at least 1).

    Raises:
        ConfigError: an odd width, or one the heads do not divide.
    """
    n_heads = max(1, width // 64) if n_heads is None else n_heads
    if width < 2 or width % 2 or n_heads < 1 or width % n_heads:
        raise ConfigError(f"n_heads: width {width} must be even and divisible by n_heads {n_heads}")
    return n_heads
