"""``compat: starvla``: what StarVLA's flow-matching heads do differently (its repository, August 2026).

Kept apart, for the sake of its checkpoints alone; the block is in :mod:`vla_heads.compat.block`:

- the 256 time features are [cos | sin], with frequencies that end at 1 / max_period (diffusers'
  ``Timesteps`` with ``downscale_freq_shift=1``);
- layerwise heads decode the last block's output as it is;
- in training, noise, time and actions are rounded to the dtype of the backbone: under bf16 half of
  the 1000 time buckets merge.

Shape legend: B rows, R repeats, T action steps, A action dims.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from vla_core.interfaces import HeadInputs

from vla_heads.flow_head import FlowHead

FINAL_EPS = 1e-6
"""Of the LayerNorm before the final projection."""


def time_features(bucket: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Cosine-sine features of a bucket (any shape ``[...]``), fp32 ``[..., dim]``; ``dim`` is even."""
    half = dim // 2
    exponent = torch.arange(half, device=bucket.device, dtype=torch.float32) / (half - 1)
    angle = bucket.float()[..., None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def path(
    actions: Tensor, noise: Tensor, time: Tensor, dtype: torch.dtype, n_buckets: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Point on the path, its velocity and the time bucket, computed in ``dtype``.

    Args:
        actions: ``[B, 1, T, A]``.
        noise: ``[B, R, T, A]``.
        time: ``[B, R]`` in [0, 1].
        dtype: of the backbone's hidden states.
        n_buckets: of the network's time.

    Returns:
        ``x`` and ``target`` ``[B, R, T, A]`` fp32, and long buckets ``[B, R]``, as far as ``n_buckets``.
    """
    actions, noise, time = actions.to(dtype), noise.to(dtype), time.to(dtype)
    t = time[..., None, None]
    x = (1 - t) * noise + t * actions
    return x.float(), (actions - noise).float(), (time * n_buckets).long()


class StarVLAFlow(FlowHead):
    """Base of StarVLA's flow-matching heads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.time.features = time_features
        self.final_dropout.p = 0.0
        if self.final_norm is not None:
            self.final_norm.norm.eps = FINAL_EPS

    def path(
        self, inputs: HeadInputs, actions: Tensor, noise: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the base; rounded to the dtype of the backbone."""
        return path(actions, noise, time, self.rounded_to(inputs), self.config.n_buckets)

    def rounded_to(self, inputs: HeadInputs) -> torch.dtype:
        """The dtype that noise, time and actions are rounded to in training."""
        return inputs.vlm.hidden[self.layers[-1]].dtype
