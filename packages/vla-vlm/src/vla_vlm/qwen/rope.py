"""Rotary tables in float32, whatever the weights are: ``.to(bfloat16)`` must not round angles.

B rows, S text tokens, N patch tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vla_core.errors import ConfigError

from vla_vlm.qwen.tables import Tables


def frequencies(base: float, dim: int) -> Tensor:
    """``dim / 2`` inverse frequencies (RoPE, arXiv 2104.09864), float32."""
    return 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))


class TextRope(Tables):
    """mrope of the language model: each frequency reads one of the three position axes.

    Args:
        config: ``text_config`` of the model.
        axes: from ``mrope_section`` to the axis of each frequency.
    """

    inv_freq: Tensor
    axis: Tensor

    def __init__(self, config: Any, axes: Callable[[Sequence[int]], list[int]]) -> None:
        super().__init__()
        rope: Mapping[str, Any] = dict(config.rope_parameters or {})
        if rope["rope_type"] != "default":
            raise ConfigError(
                f"rope_type '{rope['rope_type']}' of the model's config isn't supported; only 'default' is"
            )
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        sections = rope.get("mrope_section") or ()
        if len(sections) != 3 or 2 * sum(sections) != dim:
            raise ConfigError(
                f"mrope_section {list(sections)} of the model's config must be three numbers "
                f"that add up to half of its head dim {dim}"
            )
        with torch.device("cpu"):
            inv_freq, axis = frequencies(rope["rope_theta"], dim), torch.tensor(axes(sections))
        self._table("inv_freq", inv_freq)
        self._table("axis", axis)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[B, S, D]`` in ``dtype`` of positions ``[3, B, S]``."""
        angle = position_ids[self.axis].permute(1, 2, 0).float() * self.inv_freq
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(dtype), angle.sin().to(dtype)


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
