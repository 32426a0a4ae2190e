"""Choices of :class:`~vla_heads.groot_flow.GR00TFlow`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims
from vla_core.ranges import Count, Layer

from vla_heads.flow_config import FlowConfig, check_flow, heads_of

PRESETS = {"B": (768, 12), "L": (1536, 32)}
"""Size -> (width, attention heads)."""


@dataclass(frozen=True)
class GR00TFlowConfig(FlowConfig):
    """YAML node of ``groot_flow``.

    Args:
        size: ``B`` is width 768 with 12 heads of 64, ``L`` width 1536 with 32 heads of 48; ``custom``
            takes ``width`` and ``n_heads``.
        width, n_heads: of ``size: custom`` (null heads: width / 64); null for the other sizes.
        n_blocks: transformer blocks; even ones (0, 2, ...) cross-attend to the backbone, odd ones
            self-attend.
        output_width: width between the transformer and the action decoder.
        layer: the hidden state to read: 0 is the embeddings, i the output of layer i, a negative
            number counts from the end; -1 is the last layer's, after the final norm.
        normalize_vl_hidden: LayerNorm without parameters on the context; switch it on with a ``layer``
            before the last, which no norm of the backbone has tamed.
    """

    size: Literal["B", "L", "custom"] = "B"
    width: Count | None = None
    n_heads: Count | None = None
    n_blocks: Count = 16
    output_width: Count = 1024
    layer: Layer = -1
    normalize_vl_hidden: bool = False
    repeated_diffusion_steps: Count = 8
    compat: Literal["none", "starvla"] = "none"


@dataclass(frozen=True)
class Sizes:
    """A config resolved against the backbone."""

    width: int
    n_heads: int
    layer: int


def resolve(config: GR00TFlowConfig, dims: HeadDims) -> Sizes:
    """Fill what the size and the backbone imply, and check the rest.

    Raises:
        ConfigError: a value that cannot work, with the key's name and the fix.
    """
    check_flow(config, dims.horizon)
    if config.size == "custom":
        if config.width is None:
            raise ConfigError("width: size 'custom' needs it, e.g. width: 256")
        width, n_heads = config.width, heads_of(config.width, config.n_heads)
    elif config.size not in PRESETS:
        raise ConfigError(f"size: '{config.size}' must be 'B', 'L' or 'custom'")
    elif config.width is not None or config.n_heads is not None:
        raise ConfigError(
            f"width: size '{config.size}' sets width and n_heads; use size: custom with your own"
        )
    else:
        width, n_heads = PRESETS[config.size]
    layer = config.layer + dims.n_layers + 1 if config.layer < 0 else config.layer
    if not 0 <= layer <= dims.n_layers:
        raise ConfigError(
            f"layer: {config.layer} must be between {-dims.n_layers - 1} and {dims.n_layers}, "
            "the backbone's number of layers"
        )
    return Sizes(width, n_heads, layer)
