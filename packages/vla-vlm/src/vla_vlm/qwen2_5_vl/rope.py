"""Rotary tables in float32, whatever the weights are: ``.to(bfloat16)`` must not round angles.

B rows, S text tokens, N patch tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLVisionRotaryEmbedding,
)
from vla_core.errors import ConfigError

from vla_vlm.qwen2_5_vl.tables import Tables


class TextRope(Tables):
    """mrope of the language model: each frequency reads one of the three position axes."""

    inv_freq: Tensor
    axis: Tensor

    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__()
        rope: Mapping[str, Any] = dict(config.rope_parameters or {})
        if rope["rope_type"] != "default":
            raise ConfigError(
                f"rope_type '{rope['rope_type']}' of the model's config isn't supported; only 'default' is"
            )
        with torch.device("cpu"):
            inv_freq, _ = Qwen2_5_VLRotaryEmbedding.compute_default_rope_parameters(config)
            sections = rope.get("mrope_section", [16, 24, 24])
            axis = torch.tensor([i % 3 for i, size in enumerate(sections) for _ in range(size)])
        self._table("inv_freq", inv_freq.float())
        self._table("axis", axis)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[B, S, D]`` in ``dtype`` of positions ``[3, B, S]``."""
        angle = position_ids[self.axis].permute(1, 2, 0).float() * self.inv_freq
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(dtype), angle.sin().to(dtype)


class VisionRope(Tables):
    """Axial rope of the vision transformer for one patch grid: tables made once."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Qwen2_5_VLVisionConfig, grid: tuple[int, int], order: Tensor | None) -> None:
        """``grid``: (rows, columns) of patches; ``order``: merged tokens in window order, or None."""
        super().__init__()
        with torch.device("cpu"):
            angle = self._angles(config, grid, order)
        self._table("cos", angle.cos())
        self._table("sin", angle.sin())

    @staticmethod
    def _angles(config: Qwen2_5_VLVisionConfig, grid: tuple[int, int], order: Tensor | None) -> Tensor:
        merge = config.spatial_merge_size
        inv_freq, _ = Qwen2_5_VLVisionRotaryEmbedding.compute_axial_rope_parameters(config)
        position = torch.stack(
            torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"), dim=-1
        )
        # Patches of one merged token are neighbours in the sequence, as the processor writes them.
        position = position.view(grid[0] // merge, merge, grid[1] // merge, merge, 2).transpose(1, 2)
        position = position.reshape(-1, merge * merge, 2)
        if order is not None:
            position = position[order.cpu()]
        angle = (position.reshape(-1, 2, 1).float() * inv_freq.float()).flatten(1)
        return torch.cat([angle, angle], dim=-1)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[N, D]``, float32."""
        return self.cos, self.sin
