"""How time, state and noisy actions become tokens.

Shape legend: B rows, R repeats, T action steps, A action dims, D state dims, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoid(position: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sine-cosine features of a position (any shape ``[...]``), fp32 ``[..., dim]``; ``dim`` is even."""
    half = dim // 2
    exponent = torch.arange(half, device=position.device, dtype=torch.float32) / half
    angle = position.float()[..., None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class MLP(nn.Module):
    """Linear, activation, Linear. Input of any dtype; computed in the dtype of the weights."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int, activation: str = "relu") -> None:
        super().__init__()
        self.up = nn.Linear(d_in, d_hidden)
        self.down = nn.Linear(d_hidden, d_out)
        self.activation = {"relu": F.relu, "silu": F.silu}[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x.to(self.up.weight.dtype))))


class TimestepEmbedder(nn.Module):
    """Time bucket, long ``[...]`` -> ``[..., W]`` for the AdaLN layers: sinusoid(256) -> MLP -> SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = MLP(256, width, width, "silu")

    def forward(self, bucket: Tensor) -> Tensor:
        return F.silu(self.mlp(sinusoid(bucket, 256)))


class ActionEncoder(nn.Module):
    """Noisy actions and their time to tokens: Linear, mix with the time, SiLU, Linear.

    Mixing is a Linear over the concatenation [action | time] (GR00T N1, arXiv 2503.14734). Written as
    two Linears that are added, the time half is computed once per time instead of once per token.
    """

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(action_dim, width)
        self.mix_action = nn.Linear(width, width)
        self.mix_time = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def encode_time(self, bucket: Tensor) -> Tensor:
        """Time half of the mix, ``[..., W]`` for long ``[...]`` buckets."""
        return self.mix_time(sinusoid(bucket, self.width).to(self.mix_time.weight.dtype))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x [B, R, T, A]`` and ``time = encode_time(bucket) [B, R, W]`` -> ``[B, R, T, W]``."""
        x = self.mix_action(self.embed(x.to(self.embed.weight.dtype)))
        return self.out(F.silu(x + time[..., None, :]))
