"""Choices of :class:`~vla_heads.layerwise_fm.LayerwiseFM`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims


@dataclass(frozen=True)
class LayerwiseFMConfig:
    """YAML node of ``layerwise_fm``.

    Args:
        n_blocks: DiT blocks K; null is one per backbone layer.
        vl_layer_selection: which K layers are read: the outputs of layers 1..K (``first``) or of
            the last K (``last``).
        use_concat_cross_context: one attention over [context | own tokens] in each block, instead of
            self-attention followed by cross-attention. Own tokens interact in both.
        normalize_vl_hidden: LayerNorm without parameters on the context; deep backbones carry
            activations hundreds of times the typical size.
        width: width W of the blocks; null is the backbone's hidden size.
        n_heads: attention heads; null is W / 64 (at least 1).
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
    """

    n_blocks: int | None = None
    vl_layer_selection: Literal["first", "last"] = "last"
    use_concat_cross_context: bool = False
    normalize_vl_hidden: bool = True
    width: int | None = None
    n_heads: int | None = None
    dropout: float = 0.0
    n_future_tokens: int = 32
    state_hidden: int = 1024
    decoder_hidden: int = 1024
    repeated_diffusion_steps: int = 2
    steps: int = 4
    time_alpha: float = 1.5
    time_s: float = 0.999
    n_buckets: int = 1000


@dataclass(frozen=True)
class Sizes:
    """A config resolved against the backbone: no nulls left."""

    n_blocks: int
    width: int
    n_heads: int
    layers: tuple[int, ...]


def resolve(config: LayerwiseFMConfig, dims: HeadDims) -> Sizes:
    """Fill the nulls and check the rest.

    Raises:
        ConfigError: a value that cannot work, with the key's name and the fix.
    """
    for key, low in (("n_future_tokens", 0), ("repeated_diffusion_steps", 1), ("steps", 1), ("n_buckets", 1)):
        if getattr(config, key) < low:
            raise ConfigError(f"{key}: {getattr(config, key)} must be at least {low}")
    if not 0.0 <= config.dropout < 1.0:
        raise ConfigError(f"dropout: {config.dropout} must be in [0, 1)")
    if config.vl_layer_selection not in ("first", "last"):
        raise ConfigError(f"vl_layer_selection: '{config.vl_layer_selection}' must be 'first' or 'last'")
    n_blocks = dims.n_layers if config.n_blocks is None else config.n_blocks
    if not 1 <= n_blocks <= dims.n_layers:
        raise ConfigError(
            f"n_blocks: {n_blocks} must be between 1 and the backbone's {dims.n_layers} layers (null: all)"
        )
    width = dims.hidden_size if config.width is None else config.width
    n_heads = max(1, width // 64) if config.n_heads is None else config.n_heads
    if width < 2 or width % 2 or n_heads < 1 or width % n_heads:
        raise ConfigError(f"n_heads: width {width} must be even and divisible by n_heads {n_heads}")
    first = 1 if config.vl_layer_selection == "first" else dims.n_layers - n_blocks + 1
    return Sizes(n_blocks, width, n_heads, tuple(range(first, first + n_blocks)))
