"""Transformer block of DINOv2 (arXiv 2304.07193), used by both stages of MapAnything.

Module names are those of the published weights. Shape legend: B rows, L tokens, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.shard import ShardUnit

EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention ``[B, L, W]`` -> ``[B, L, W]`` over the keys that ``seen [B, L]`` allows."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        mask = None if seen is None else seen[:, None, None]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """GELU MLP, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """SwiGLU (arXiv 2002.05202) of about the parameters of the MLP: 8/3 W inside, rounded up to 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = (4 * width * 2 // 3 + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A residual whose branch has a learned factor for each channel; one kernel for both."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return torch.addcmul(x, branch, self.gamma)


class Residual(nn.Module):
    """A residual without a factor."""

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch


class Block(ShardUnit, nn.Module):
    """Pre-norm attention and feed-forward, each with a residual and (unless None) a LayerScale."""

    def __init__(self, width: int, n_heads: int, swiglu: bool, layer_scale: float | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, n_heads)
        self.mlp = SwiGLU(width) if swiglu else Mlp(width)
        self.ls1, self.ls2 = (
            Residual() if layer_scale is None else LayerScale(width, layer_scale) for _ in range(2)
        )

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        x = self.ls1(x, self.attn(self.norm1(x), seen))
        return self.ls2(x, self.mlp(self.norm2(x)))
