"""Rotary tables of the language model in float32: ``.to(bfloat16)`` must not round angles.

P position axes, B rows, S text tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vla_core.errors import ConfigError

from vla_vlm.common.tables import Tables


def frequencies(base: float, dim: int) -> Tensor:
    """``dim / 2`` inverse frequencies (RoPE, arXiv 2104.09864), float32."""
    return 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))


class TextRope(Tables):
    """Rope of the language model: one position axis, or each frequency reads one of three (mrope).

    Args:
        config: ``text_config`` of the model.
        axes: from ``mrope_section`` to the axis of each frequency; None: there is one axis.
    """

    inv_freq: Tensor
    axis: Tensor

    def __init__(self, config: Any, axes: Callable[[Sequence[int]], list[int]] | None = None) -> None:
        super().__init__()
        rope: Mapping[str, Any] = dict(config.rope_parameters or {})
        if rope["rope_type"] != "default":
            raise ConfigError(
                f"rope_type '{rope['rope_type']}' of the model's config isn't supported; only 'default' is"
            )
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        chosen = [0] * (dim // 2)
        if axes is not None:
            sections = rope.get("mrope_section") or ()
            if len(sections) != 3 or 2 * sum(sections) != dim:
                raise ConfigError(
                    f"mrope_section {list(sections)} of the model's config must be three numbers "
                    f"that add up to half of its head dim {dim}"
                )
            chosen = axes(sections)
        with torch.device("cpu"):
            inv_freq, axis = frequencies(rope["rope_theta"], dim), torch.tensor(chosen)
        self._table("inv_freq", inv_freq)
        self._table("axis", axis)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[B, S, D]`` in ``dtype`` of positions ``[P, B, S]``."""
        angle = position_ids[self.axis].permute(1, 2, 0).float() * self.inv_freq
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(dtype), angle.sin().to(dtype)
