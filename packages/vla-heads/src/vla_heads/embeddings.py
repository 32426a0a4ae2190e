"""How time, state and noisy actions become tokens.

Shape legend: B rows, R repeats, T action steps, A action dims, D state dims, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_heads.category import apply, linear


def sinusoid(position: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sine-cosine features of a position (any shape ``[...]``), fp32 ``[..., dim]``; ``dim`` is even."""
    half = dim // 2
    exponent = torch.arange(half, device=position.device, dtype=torch.float32) / half
    angle = position.float()[..., None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class MLP(nn.Module):
    """Linear, activation, Linear. Input of any dtype; computed in the dtype of the weights.

    With ``n_categories``, every row has the weights of its category (``[B]``).
    """

    def __init__(
        self, d_in: int, d_hidden: int, d_out: int, activation: str = "relu", n_categories: int | None = None
    ) -> None:
        super().__init__()
        self.up = linear(d_in, d_hidden, n_categories)
        self.down = linear(d_hidden, d_out, n_categories)
        self.activation = {"relu": F.relu, "silu": F.silu}[activation]

    def forward(self, x: Tensor, category: Tensor | None = None) -> Tensor:
        x = self.activation(apply(self.up, x.to(self.up.weight.dtype), category))
        return apply(self.down, x, category)


class TimestepEmbedder(nn.Module):
    """Time bucket, long ``[...]`` -> ``[..., W]`` for the AdaLN layers: features(256) -> MLP -> SiLU.

    The features are :func:`sinusoid` unless others are given.
    """

    def __init__(self, width: int, features: Callable[[Tensor, int], Tensor] = sinusoid) -> None:
        super().__init__()
        self.mlp, self.features = MLP(256, width, width, "silu"), features

    def forward(self, bucket: Tensor) -> Tensor:
        return F.silu(self.mlp(self.features(bucket, 256)))


class ActionEncoder(nn.Module):
    """Noisy actions and their time to tokens: Linear, mix with the time, SiLU, Linear.

    Mixing is a Linear over the concatenation [action | time] (GR00T N1, arXiv 2503.14734). Written as
    two Linears that are added, the time half is computed once per time instead of once per token.
    With ``n_categories``, every row has the weights of its category.
    """

    def __init__(self, action_dim: int, width: int, n_categories: int | None = None) -> None:
        super().__init__()
        self.width, self.n_categories = width, n_categories
        self.embed = linear(action_dim, width, n_categories)
        self.mix_action = linear(width, width, n_categories)
        self.mix_time = linear(width, width, n_categories, bias=False)
        self.out = linear(width, width, n_categories)

    def encode_time(self, bucket: Tensor) -> Tensor:
        """What depends on the time alone, ``[..., W]`` for long ``[...]`` buckets.

        That is the time half of the mix; with categories, whose weights differ from row to row, its input.
        """
        features = sinusoid(bucket, self.width).to(self.mix_time.weight.dtype)
        return features if self.n_categories else self.mix_time(features)

    def forward(self, x: Tensor, time: Tensor, category: Tensor | None = None) -> Tensor:
        """``x [B, R, T, A]`` and ``time = encode_time(bucket) [B, R, W]`` (or one per step
        ``[B, R, T, W]``) -> ``[B, R, T, W]``."""
        x = apply(self.embed, x.to(self.embed.weight.dtype), category)
        x = apply(self.mix_action, x, category)
        if self.n_categories:
            time = apply(self.mix_time, time, category)
        time = time if time.ndim == x.ndim else time[..., None, :]
        return apply(self.out, F.silu(x + time), category)
