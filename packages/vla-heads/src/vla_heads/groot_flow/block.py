"""One DiT block with one attention: to the backbone or among its own tokens, modulated by the time.

Shape legend: B rows, R repeats (noise draws that share an observation), L own tokens, S context
tokens, H context width, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from vla_heads import few_rows
from vla_heads.dit import Block, FeedForward, KeysValues, UnitLinear, split_heads


class InterleavedBlock(Block):
    """AdaLN -> attention -> LayerNorm -> feed-forward, with residuals.

    Args:
        context_width: H for a block that cross-attends, None for one that self-attends.
    """

    def __init__(self, width: int, n_heads: int, context_width: int | None, dropout: float) -> None:
        super().__init__(width, n_heads, dropout)
        if context_width is None:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q = nn.Linear(width, width)
            self.context_kv = UnitLinear(context_width, 2 * width)
        self.out = nn.Linear(width, width)
        self.ff_norm = nn.LayerNorm(width)
        self.ff = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    @property
    def residual_outputs(self) -> tuple[nn.Linear, ...]:
        """Attention and feed-forward."""
        return (self.out, self.ff.down)

    def project_context(self, context: Tensor) -> KeysValues:
        """Keys and values of the context ``[B, S, H]``; once per observation."""
        k, v = split_heads(self.context_kv(context), 2, self.n_heads)
        return k, v

    def forward(
        self,
        x_BRLW: Tensor,
        context: KeysValues | None,
        context_mask: Tensor,
        modulation: Tensor,
        token_mask: Tensor | None,
    ) -> Tensor:
        """One block; arguments as :class:`~vla_heads.dit.Block` says."""
        x = self.ada(x_BRLW, modulation)
        if context is None:
            qkv = few_rows.linear(self.qkv, x.flatten(0, 1))
            attended = self.self_attention(qkv, token_mask, x.shape[1])
        else:
            q = few_rows.linear(self.q, x.flatten(1, 2))
            attended = self.cross_attention(q, context, context_mask)
        x_BRLW = few_rows.linear(self.out, attended, x_BRLW, dropout=self.dropout)
        return self.ff(few_rows.norm(self.ff_norm, x_BRLW), x_BRLW, self.dropout)
