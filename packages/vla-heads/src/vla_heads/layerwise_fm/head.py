"""The layerwise flow-matching head: a DiT whose block i reads layer i of the backbone.

Shape legend: L own tokens = [state | future | actions], S context tokens, W width, K blocks.
"""

from __future__ import annotations

from typing import ClassVar

from vla_core.interfaces import HeadDims

from vla_heads.dit import Block
from vla_heads.flow_head import FlowHead
from vla_heads.layerwise_fm.block import DiTBlock
from vla_heads.layerwise_fm.config import LayerwiseFMConfig, resolve
from vla_heads.layerwise_fm.llava3d_block import Llava3DBlock
from vla_heads.starvla_block import StarVLABlock


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
        reads: list[int | None] = list(sizes.layers)
        blocks: list[Block]
        if config.compat == "starvla":
            if config.interleave_self_attention:
                reads[1::2] = [None] * len(reads[1::2])
            blocks = [
                StarVLABlock(
                    sizes.width,
                    sizes.n_heads,
                    None if layer is None else dims.hidden_size,
                    config.dropout,
                    per_layer,
                )
                for layer in reads
            ]
        elif config.compat == "starvla_llava3d":
            concat = config.use_concat_cross_context
            blocks = [Llava3DBlock(sizes.width, sizes.n_heads, concat, config.dropout) for _ in reads]
        else:
            blocks = [
                DiTBlock(
                    sizes.width,
                    sizes.n_heads,
                    dims.hidden_size,
                    config.use_concat_cross_context,
                    config.dropout,
                    per_layer,
                )
                for _ in reads
            ]
        normalize = config.normalize_vl_hidden and not per_layer
        super().__init__(
            config,
            dims,
            blocks,
            reads,
            sizes.width,
            sizes.output_width,
            normalize,
            read_out=config.compat != "starvla",
        )

    @classmethod
    def build(cls, config: LayerwiseFMConfig, dims: HeadDims) -> LayerwiseFM:
        """Build for a backbone and robot of the given sizes.

        Raises:
            ConfigError: see :func:`~vla_heads.layerwise_fm.config.resolve`.
        """
        return cls(config, dims)
