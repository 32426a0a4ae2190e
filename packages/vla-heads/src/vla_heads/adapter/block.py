"""One adapter block: action tokens attend to themselves, to query states and, behind a gate, to vision.

Shape legend: B rows, T action tokens, Q query and state tokens, N vision tokens, H backbone width,
W width, n heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.shard import ShardUnit

from vla_heads.dit import merge_heads, split_heads
from vla_heads.residual import ResidualBlock


class AdapterBlock(ShardUnit, nn.Module):
    """``x + Linear([self | queries | tanh(gate) vision])``, then a residual feed-forward.

    The gate starts at 0: vision is admitted as far as it helps (VLA-Adapter, arXiv 2509.09372).
    """

    def __init__(self, width: int, n_heads: int, context_width: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.LayerNorm(context_width)
        self.query_kv = nn.Linear(context_width, 2 * width)
        self.vision_norm = nn.LayerNorm(context_width)
        self.vision_kv = nn.Linear(context_width, 2 * width)
        self.gate = nn.Parameter(torch.zeros(1))
        self.out = nn.Linear(3 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.ff = ResidualBlock(width, dropout)

    def forward(self, x: Tensor, queries: Tensor, vision: Tensor, vision_mask: Tensor) -> Tensor:
        """One block.

        Args:
            x: action tokens ``[B, T, W]``.
            queries: query states and the encoded state ``[B, Q, H]``.
            vision: ``[B, N, H]``, all of the backbone's tokens.
            vision_mask: bool ``[B, 1, 1, N]``; False is never attended to.
        """
        q, k, v = split_heads(self.qkv(self.norm(x)), 3, self.n_heads)
        own = F.scaled_dot_product_attention(q, k, v)
        k, v = split_heads(self.query_kv(self.query_norm(queries)), 2, self.n_heads)
        asked = F.scaled_dot_product_attention(q, k, v)
        k, v = split_heads(self.vision_kv(self.vision_norm(vision)), 2, self.n_heads)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=vision_mask) * self.gate.tanh()
        read = torch.cat([merge_heads(a) for a in (own, asked, seen)], dim=-1)
        x = x + self.dropout(self.out(read))
        return self.ff(x)
