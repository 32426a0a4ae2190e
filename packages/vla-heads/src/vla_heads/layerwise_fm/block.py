"""One DiT block: its tokens attend to each other and to one backbone layer, modulated by the time.

Shape legend: B rows, R repeats (noise draws that share an observation), L own tokens, S context
tokens, H context width, W width, n heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_heads import few_rows
from vla_heads.dit import Block, FeedForward, KeysValues, UnitLinear, UnitSequential, split_heads


class DiTBlock(Block):
    """AdaLN -> attention -> LayerNorm -> feed-forward, with residuals.

    ``concat=False``: self-attention, then cross-attention behind its own LayerNorm.
    ``concat=True``: one attention whose keys and values are [context | own tokens].
    ``project=True``: LayerNorm and Linear H -> W bring the context to the width of the own tokens first;
    with ``concat`` context and own tokens then share K and V matrices.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        context_width: int,
        concat: bool,
        dropout: float,
        project: bool = False,
    ) -> None:
        super().__init__(width, n_heads, dropout)
        self.concat, self.shared = concat, concat and project
        if self.shared:
            self.q = nn.Linear(width, width)
            self.kv = UnitLinear(width, 2 * width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.context_in = (
            UnitSequential(nn.LayerNorm(context_width), nn.Linear(context_width, width)) if project else None
        )
        if not self.shared:
            self.context_kv = UnitLinear(width if project else context_width, 2 * width)
        if not concat:
            self.cross_norm = nn.LayerNorm(width)
            self.cross_q = nn.Linear(width, width)
            self.cross_out = nn.Linear(width, width)
        self.ff_norm = nn.LayerNorm(width)
        self.ff = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    @property
    def residual_outputs(self) -> tuple[nn.Linear, ...]:
        """Attention, feed-forward and, where there is one, cross-attention."""
        return (self.out, self.ff.down) if self.concat else (self.out, self.ff.down, self.cross_out)

    def project_context(self, context: Tensor) -> KeysValues:
        """Keys and values of the context ``[B, S, H]``; once per observation."""
        if self.context_in is not None:
            context = self.context_in(context)
        keys_values = self.kv(context) if self.shared else self.context_kv(context)
        k, v = split_heads(keys_values, 2, self.n_heads)
        return k, v

    def forward(
        self,
        x_BRLW: Tensor,
        context: KeysValues,
        context_mask: Tensor,
        modulation: Tensor,
        token_mask: Tensor | None,
    ) -> Tensor:
        """One block; arguments as :class:`~vla_heads.dit.Block` says."""
        repeats = x_BRLW.shape[1]
        x, linear = self.ada(x_BRLW, modulation).flatten(0, 1), few_rows.linear
        if self.shared:
            qkv = torch.cat([linear(self.q, x), self.kv(x)], dim=-1)
        else:
            qkv = linear(self.qkv, x)
        if self.concat:
            attended = self.joint_attention(qkv, context, context_mask, token_mask, repeats)
            x_BRLW = linear(self.out, attended, x_BRLW, dropout=self.dropout)
        else:
            attended = self.self_attention(qkv, token_mask, repeats)
            x_BRLW = linear(self.out, attended, x_BRLW, dropout=self.dropout)
            q = linear(self.cross_q, few_rows.norm(self.cross_norm, x_BRLW)).flatten(1, 2)
            attended = self.cross_attention(q, context, context_mask)
            x_BRLW = linear(self.cross_out, attended, x_BRLW, dropout=self.dropout)
        return self.ff(few_rows.norm(self.ff_norm, x_BRLW), x_BRLW, self.dropout)
