"""``compat: starvla`` of ``groot_flow``: StarVLA's GR00T head."""

from __future__ import annotations

from typing import ClassVar

from vla_core.interfaces import HeadDims

from vla_heads.compat.block import StarVLABlock
from vla_heads.compat.flow import StarVLAFlow
from vla_heads.groot_flow.config import GR00TFlowConfig, resolve


class StarVLAGR00T(StarVLAFlow):
    """As :class:`~vla_heads.groot_flow.GR00TFlow`, of StarVLA's blocks."""

    Config: ClassVar[type] = GR00TFlowConfig
    config: GR00TFlowConfig

    def __init__(self, config: GR00TFlowConfig, dims: HeadDims) -> None:
        sizes = resolve(config, dims)
        crosses = [i % 2 == 0 for i in range(config.n_blocks)]
        super().__init__(
            config,
            dims,
            [
                StarVLABlock(sizes.width, sizes.n_heads, dims.hidden_size if cross else None, config.dropout)
                for cross in crosses
            ],
            [sizes.layer if cross else None for cross in crosses],
            sizes.width,
            config.output_width,
            config.normalize_vl_hidden,
            n_embodiments=dims.n_embodiments,
        )
