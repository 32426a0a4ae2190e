"""Choices of :class:`~vla_heads.pi0.PI0Head`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims, KVDims
from vla_core.ranges import BelowOne, Count, Natural, Positive, Range, check_ranges


@dataclass(frozen=True)
class PI0Config:
    """YAML node of ``pi0``; the defaults are those of the published models.

    The expert has as many layers as the backbone and its heads, key-value heads and head width.

    Args:
        variant: ``pi0``: a state token in front of the actions, time mixed into the action tokens
            (arXiv 2410.24164). ``pi05``: action tokens alone, time in the norms (adaptive RMSNorm); the
            state belongs into the prompt as text, ``{state}`` (arXiv 2504.16054).
        width: width W of the expert.
        mlp_width: hidden width of its feed-forward.
        max_action_dim: action dims of the network; actions are padded with zeros up to it. null: the robot's.
        max_state_dim: state dims of the network, likewise (``pi0`` only).
        spare_dims: what the network reads in the action dims that a robot lacks while noise becomes actions:
            ``zero``, or ``noise`` that flows to zero like the rest, which openpi and lerobot train and sample
            with. It reaches no loss and no answer.
        repeated_diffusion_steps: R, noise draws per observation in training; the backbone runs once for
            all of them.
        steps: Euler steps when sampling.
        time_alpha: noise levels are drawn from Beta(time_alpha, 1).
        time_offset: least noise level, ``b (1 - time_offset) + time_offset``.
        min_period: shortest period of the time features; a noise level is in [0, 1].
        max_period: longest period.
        rtc: how a constraint is kept (real-time chunking): ``guidance`` steers any trained head by the
            gradient of its own prediction (arXiv 2506.07339); ``training_time`` gives the frozen steps
            clean (arXiv 2512.05964) to a head trained for it.
        rtc_max_delay: trains the head for that: each draw gives the first 0..rtc_max_delay steps
            clean, and they leave the loss (0: off).
        rtc_max_guidance: bound on the weight of the guidance.
    """

    variant: Literal["pi0", "pi05"] = "pi0"
    width: Annotated[int, Range(low=4)] = 1024
    mlp_width: Count = 4096
    max_action_dim: Count | None = 32
    max_state_dim: Count | None = 32
    spare_dims: Literal["zero", "noise"] = "zero"
    repeated_diffusion_steps: Count = 1
    steps: Count = 10
    time_alpha: Positive = 1.5
    time_offset: BelowOne = 0.001
    min_period: Positive = 4e-3
    max_period: Positive = 4.0
    rtc: Literal["guidance", "training_time"] = "guidance"
    rtc_max_delay: Natural = 0
    rtc_max_guidance: Positive = 5.0


@dataclass(frozen=True)
class Sizes:
    """A config resolved against backbone and robot: action dims, state dims, the shared attention."""

    action_dim: int
    state_dim: int
    kv: KVDims


def resolve(config: PI0Config, dims: HeadDims) -> Sizes:
    """Fill the nulls and check the rest.

    Raises:
        ConfigError: a value that cannot work, with the key's name and the fix.
    """
    if dims.kv is None:
        raise ConfigError(
            "head: pi0 joins the attention of the backbone, and this one does not give its keys and values; "
            "choose one that does (paligemma), or a head that reads hidden states (layerwise_fm, groot_flow)"
        )
    if dims.context_dim:
        raise ConfigError(
            "head: pi0 cannot read the head context of this fusion; use a fusion that joins vision or "
            "language, or a head that reads it (layerwise_fm, groot_flow, adapter)"
        )
    if config.variant not in ("pi0", "pi05"):
        raise ConfigError(f"variant: '{config.variant}' must be 'pi0' or 'pi05'")
    if config.spare_dims not in ("zero", "noise"):
        raise ConfigError(f"spare_dims: '{config.spare_dims}' must be 'zero' or 'noise'")
    check_ranges(config)
    if config.width % 2:
        raise ConfigError(f"width: {config.width} must be even")
    if config.min_period >= config.max_period:
        raise ConfigError(f"min_period: {config.min_period} must be below {config.max_period}")
    if config.rtc not in ("guidance", "training_time"):
        raise ConfigError(f"rtc: '{config.rtc}' must be 'guidance' or 'training_time'")
    if config.rtc_max_delay >= dims.horizon:
        raise ConfigError(
            f"rtc_max_delay: {config.rtc_max_delay} must be in 0..{dims.horizon - 1} (below the horizon)"
        )
    if config.rtc == "training_time" and not config.rtc_max_delay:
        raise ConfigError("rtc: 'training_time' needs rtc_max_delay, e.g. rtc_max_delay: 4")
    widths = {}
    for key, needed in (("max_action_dim", dims.action_dim), ("max_state_dim", dims.state_dim)):
        limit = getattr(config, key)
        if limit is not None and limit < needed and (key == "max_action_dim" or config.variant == "pi0"):
            raise ConfigError(
                f"{key}: {limit} is less than the robot's {needed} dims; raise it, or set it to null"
            )
        widths[key] = needed if limit is None else limit
    return Sizes(widths["max_action_dim"], widths["max_state_dim"], dims.kv)
