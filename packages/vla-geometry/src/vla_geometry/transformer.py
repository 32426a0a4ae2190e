"""Pre-norm transformer block (ViT, arXiv 2010.11929), shared by the encoder's stages.

Shape legend: B rows, L tokens, W width, n heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.shard import ShardUnit


class Attention(nn.Module):
    """Multi-head self-attention ``[B, L, W]`` -> ``[B, L, W]``; ``mask [B, L]``: False keys are not seen."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        keys = None if mask is None else mask[:, None, None, :]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.out(x.transpose(1, 2).flatten(2))


class Block(ShardUnit, nn.Module):
    """Attention and a GELU MLP (x4), each behind a LayerNorm with a residual."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, n_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))
