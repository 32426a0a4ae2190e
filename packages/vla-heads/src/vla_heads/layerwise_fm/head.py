"""The layerwise flow-matching head: a DiT whose block i reads layer i of the backbone.

Shape legend: L own tokens = [state | future | actions], S context tokens, W width, K blocks.
"""

from __future__ import annotations

from typing import ClassVar

from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims

from vla_heads.compat import choose
from vla_heads.flow_head import FlowHead
from vla_heads.layerwise_fm.block import DiTBlock
from vla_heads.layerwise_fm.config import LayerwiseFMConfig, resolve


class LayerwiseFM(FlowHead):
    """Flow matching with one DiT block per backbone layer (as in pi0's family, arXiv 2410.24164).

    Cost per observation, in FLOP, with K blocks, W = H: ``4 K S W^2`` for the context once, then for
    each repeat (training) or denoise step (sampling) ``K L (28 W^2 + 4 W (S + L))``.
    """

    Config: ClassVar[type] = LayerwiseFMConfig
    config: LayerwiseFMConfig

    def __init__(self, config: LayerwiseFMConfig, dims: HeadDims) -> None:
        sizes = resolve(config, dims)
        per_layer = config.project_context == "per_layer"
        if not config.interleave_self_attention:
            raise ConfigError(
                "interleave_self_attention: false needs compat: starvla; here every block has both attentions"
            )
        blocks = [
            DiTBlock(
                sizes.width,
                sizes.n_heads,
                dims.hidden_size,
                config.use_concat_cross_context,
                config.dropout,
                per_layer,
            )
            for _ in sizes.layers
        ]
        normalize = config.normalize_vl_hidden and not per_layer
        super().__init__(config, dims, blocks, sizes.layers, sizes.width, sizes.output_width, normalize)

    @classmethod
    def build(cls, config: LayerwiseFMConfig, dims: HeadDims) -> FlowHead:
        """Build for a backbone and robot of the given sizes; with ``compat`` a head of another system.

        Raises:
            ConfigError: see :func:`~vla_heads.layerwise_fm.config.resolve`.
        """
        head: FlowHead = choose("layerwise_fm", config.compat, cls)(config, dims)
        return head
