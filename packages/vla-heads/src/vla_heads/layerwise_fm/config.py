"""Choices of :class:`~vla_heads.layerwise_fm.LayerwiseFM`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims
from vla_core.ranges import Count

from vla_heads.flow_config import FlowConfig, check_flow, heads_of

PROJECTED_WIDTH = 1024
"""Width of the blocks behind a per-layer projection, unless the config says otherwise."""


@dataclass(frozen=True)
class LayerwiseFMConfig(FlowConfig):
    """YAML node of ``layerwise_fm``.

    Args:
        n_blocks: DiT blocks K; null is one per backbone layer, up to ``max_blocks``.
        max_blocks: with ``n_blocks: null`` the most blocks there will be; null is no limit.
        vl_layer_selection: which K layers are read: the outputs of layers 1..K (``first``) or of
            the last K (``last``).
        use_concat_cross_context: one attention over [context | own tokens] in each block, instead of
            self-attention followed by cross-attention. Own tokens interact in both. With
            ``compat: starvla_llava3d`` instead of cross-attention alone, where they don't.
        normalize_vl_hidden: LayerNorm without parameters on the context; deep backbones carry
            activations hundreds of times the typical size. ``project_context: per_layer`` brings its own.
        project_context: ``per_layer`` puts a LayerNorm and a Linear to ``width`` between each backbone
            layer and its block, so that the blocks can be narrower than the backbone (1024 if ``width``
            is null); with ``use_concat_cross_context`` context and own tokens then share K and V matrices.
        width: width W of the blocks; null is the backbone's hidden size.
        n_heads: attention heads; null is W / 64 (at least 1).
        interleave_self_attention: with ``compat: starvla``: odd blocks (1, 3, ...) attend among their own
            tokens; false: all blocks attend to the backbone, as in StarVLA before June 2026. In its
            MapAnythingLlava3D fork the setting of that name has no effect: all blocks do.
        output_width: width between the final projection and the action decoder; null is the blocks'
            width. ``compat: starvla`` has no such projection.
    """

    n_blocks: Count | None = None
    max_blocks: Count | None = None
    vl_layer_selection: Literal["first", "last"] = "last"
    use_concat_cross_context: bool = False
    normalize_vl_hidden: bool = True
    project_context: Literal["none", "per_layer"] = "none"
    width: Count | None = None
    n_heads: Count | None = None
    interleave_self_attention: bool = True
    output_width: Count | None = None


@dataclass(frozen=True)
class Sizes:
    """A config resolved against the backbone: no nulls left."""

    n_blocks: int
    width: int
    n_heads: int
    output_width: int
    layers: tuple[int, ...]


def resolve(config: LayerwiseFMConfig, dims: HeadDims) -> Sizes:
    """Fill the nulls and check the rest.

    Raises:
        ConfigError: a value that cannot work, with the key's name and the fix.
    """
    check_flow(config, dims.horizon)
    if config.vl_layer_selection not in ("first", "last"):
        raise ConfigError(f"vl_layer_selection: '{config.vl_layer_selection}' must be 'first' or 'last'")
    most = dims.n_layers if config.max_blocks is None else min(config.max_blocks, dims.n_layers)
    n_blocks = most if config.n_blocks is None else config.n_blocks
    if n_blocks > dims.n_layers:
        raise ConfigError(
            f"n_blocks: {n_blocks} must be between 1 and the backbone's {dims.n_layers} layers (null: all)"
        )
    if config.project_context not in ("none", "per_layer"):
        raise ConfigError(f"project_context: '{config.project_context}' must be 'none' or 'per_layer'")
    default = PROJECTED_WIDTH if config.project_context == "per_layer" else dims.hidden_size
    width = default if config.width is None else config.width
    n_heads = heads_of(width, config.n_heads)
    output_width = width if config.output_width is None else config.output_width
    first = 1 if config.vl_layer_selection == "first" else dims.n_layers - n_blocks + 1
    return Sizes(n_blocks, width, n_heads, output_width, tuple(range(first, first + n_blocks)))
