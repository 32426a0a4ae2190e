"""``compat: starvla_llava3d``: the transformer block of StarVLA's MapAnythingLlava3D fork (February 2026).

Shape legend: B rows, R repeats, L own tokens, S context tokens, W width (of own tokens and context).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_heads.compat.block import StarVLABlock
from vla_heads.dit import KeysValues


class Llava3DBlock(StarVLABlock):
    """AdaLN -> attention to the backbone -> LayerNorm without parameters -> feed-forward, with residuals.

    Dropout strikes the attention's output twice, and the feed-forward inside as well.

    Args:
        concat: keys and values are those of [context | own tokens], all by the context's matrices; own
            tokens enter there as they are, without the AdaLN of the queries.
    """

    def __init__(self, width: int, n_heads: int, concat: bool, dropout: float) -> None:
        super().__init__(width, n_heads, width, dropout)
        self.concat = concat

    def forward(
        self,
        x_BRLW: Tensor,
        context: KeysValues | None,
        context_mask: Tensor,
        modulation: Tensor,
        token_mask: Tensor | None,
    ) -> Tensor:
        """One block; arguments as :class:`~vla_heads.dit.Block` says; ``context`` is there."""
        assert context is not None  # every block reads the backbone
        q = self.q(self.ada(x_BRLW, modulation))
        if self.concat:
            qkv = torch.cat([q, self.context_kv(x_BRLW)], dim=-1).flatten(0, 1)
            attended = self.joint_attention(qkv, context, context_mask, token_mask, x_BRLW.shape[1])
        else:
            attended = self.cross_attention(q.flatten(1, 2), context, context_mask)
        x_BRLW = x_BRLW + self.dropout(self.dropout(self.out(attended.view_as(x_BRLW))))
        inner = F.gelu(self.ff.up(self.ff_norm(x_BRLW)), approximate="tanh")
        return x_BRLW + self.dropout(self.ff.down(self.dropout(inner)))
