"""Rotary tables of the vision transformer, in float32 whatever the weights are.

N patch tokens, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla_vlm.common.rope import frequencies
from vla_vlm.common.tables import Tables


class VisionRope(Tables):
    """Axial rope of the vision transformer for one patch grid: tables made once.

    Args:
        config: ``vision_config`` of the model.
        grid: (rows, columns) of patches.
        order: merged tokens in the order they come in, or None for raster order.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Any, grid: tuple[int, int], order: Tensor | None = None) -> None:
        super().__init__()
        dim = config.hidden_size // config.num_heads
        with torch.device("cpu"):
            inv_freq = frequencies(config.rope_parameters["rope_theta"], dim // 2)
            position = patch_positions(grid, config.spatial_merge_size)
            if order is not None:
                position = position[order.cpu()]
            angle = (position.reshape(-1, 2, 1).float() * inv_freq).flatten(1)
            angle = torch.cat([angle, angle], dim=-1)
        self._table("cos", angle.cos())
        self._table("sin", angle.sin())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[N, D]``, float32."""
        return self.cos, self.sin


def patch_positions(grid: tuple[int, int], merge: int) -> Tensor:
    """Row and column of every patch, long ``[N / U, U, 2]`` with U = merge**2.

    Patches of one merged token are neighbours in the sequence, as the processor writes them.
    """
    rows, columns = torch.arange(grid[0], device="cpu"), torch.arange(grid[1], device="cpu")
    position = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    position = position.view(grid[0] // merge, merge, grid[1] // merge, merge, 2).transpose(1, 2)
    return position.reshape(-1, merge * merge, 2)
