"""``compat: starvla`` of ``layerwise_fm``: StarVLA's layerwise head."""

from __future__ import annotations

from typing import ClassVar

from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims

from vla_heads.compat.block import StarVLABlock
from vla_heads.compat.flow import StarVLAFlow
from vla_heads.layerwise_fm.config import LayerwiseFMConfig, resolve


class StarVLALayerwise(StarVLAFlow):
    """Blocks with one attention each; the decoder reads the last one's output as it is."""

    Config: ClassVar[type] = LayerwiseFMConfig
    config: LayerwiseFMConfig

    def __init__(self, config: LayerwiseFMConfig, dims: HeadDims) -> None:
        sizes = resolve(config, dims)
        if config.use_concat_cross_context:
            raise ConfigError(
                "use_concat_cross_context: StarVLA has none; set it to false, or compat to none"
            )
        if sizes.output_width != sizes.width:
            raise ConfigError(
                f"output_width: {sizes.output_width} must be null with compat: starvla (no projection)"
            )
        per_layer = config.project_context == "per_layer"
        reads: list[int | None] = list(sizes.layers)
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
        normalize = config.normalize_vl_hidden and not per_layer
        super().__init__(
            config, dims, blocks, reads, sizes.width, sizes.output_width, normalize, read_out=False
        )
