"""``compat: starvla_llava3d`` of ``layerwise_fm``: the head of StarVLA's MapAnythingLlava3D fork."""

from __future__ import annotations

from typing import ClassVar

import torch
from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims, HeadInputs

from vla_heads.compat.flow import StarVLAFlow
from vla_heads.compat.llava3d_block import Llava3DBlock
from vla_heads.layerwise_fm.config import LayerwiseFMConfig, resolve


class Llava3DLayerwise(StarVLAFlow):
    """Every block attends to the backbone, and is as wide as it."""

    Config: ClassVar[type] = LayerwiseFMConfig
    config: LayerwiseFMConfig

    def __init__(self, config: LayerwiseFMConfig, dims: HeadDims) -> None:
        sizes = resolve(config, dims)
        if not config.interleave_self_attention:
            raise ConfigError(
                "interleave_self_attention: false needs compat: starvla; here every block attends to the "
                "backbone"
            )
        if config.project_context != "none" or sizes.width != dims.hidden_size:
            raise ConfigError(
                f"width: compat: starvla_llava3d has blocks of the backbone's width {dims.hidden_size}; "
                "leave width null and project_context none"
            )
        concat = config.use_concat_cross_context
        blocks = [Llava3DBlock(sizes.width, sizes.n_heads, concat, config.dropout) for _ in sizes.layers]
        super().__init__(
            config,
            dims,
            blocks,
            sizes.layers,
            sizes.width,
            sizes.output_width,
            config.normalize_vl_hidden,
        )

    def rounded_to(self, inputs: HeadInputs) -> torch.dtype:
        """See the base; autocast, which the norm of the context runs under there, makes it fp32."""
        return torch.float32 if self.normalize else super().rounded_to(inputs)
