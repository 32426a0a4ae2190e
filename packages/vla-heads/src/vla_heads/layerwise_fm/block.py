"""One DiT block: its tokens attend to each other and to one backbone layer, modulated by the time.

Shape legend: B rows, R repeats (noise draws that share an observation), L own tokens, S context
tokens, H context width, W width, n heads, d head width.

Repeats never copy the context: cross-attention folds R into the query sequence (``[B, n, R L, d]``
against ``[B, n, S, d]``), self-attention folds it into the batch.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values ``[B, n, S, d]`` of one block's context."""


class FeedForward(nn.Module):
    """Linear W -> 4W, tanh-approximated GELU, Linear 4W -> W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class AdaLN(nn.Module):
    """LayerNorm whose scale and shift come from the time (DiT, arXiv 2212.09748), zero at the start.

    The two halves of ``modulation`` are called apart so that the scales and shifts of a fixed time
    grid can be computed once and reused.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """``x [B, R, L, W]``; ``modulation [B, R, 2W]`` (or broadcastable) = [scale | shift]."""
        scale, shift = modulation[..., None, :].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """AdaLN -> attention -> LayerNorm -> feed-forward, with residuals.

    ``concat=False``: self-attention, then cross-attention behind its own LayerNorm.
    ``concat=True``: one attention whose keys and values are [context | own tokens].
    """

    def __init__(self, width: int, n_heads: int, context_width: int, concat: bool, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.concat = n_heads, concat
        self.ada = AdaLN(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.context_kv = nn.Linear(context_width, 2 * width)
        if not concat:
            self.cross_norm = nn.LayerNorm(width)
            self.cross_q = nn.Linear(width, width)
            self.cross_out = nn.Linear(width, width)
        self.ff_norm = nn.LayerNorm(width)
        self.ff = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    def project_context(self, context_BSH: Tensor) -> KeysValues:
        """Keys and values of the context; once per observation."""
        k, v = self._heads(self.context_kv(context_BSH), 2)
        return k, v

    def forward(
        self,
        x_BRLW: Tensor,
        context: KeysValues,
        context_mask: Tensor,
        modulation: Tensor,
        token_mask: Tensor | None,
    ) -> Tensor:
        """One block.

        Args:
            x_BRLW: own tokens.
            context: from :meth:`project_context`.
            context_mask: bool ``[B, 1, 1, S]``; False is never attended to.
            modulation: ``[B, R, 2W]`` or broadcastable, from ``ada.modulation``.
            token_mask: bool ``[B, 1, 1, L]`` of own tokens others may attend to, or None for all.
        """
        q, k, v = self._heads(self.qkv(self.ada(x_BRLW, modulation)).flatten(0, 1), 3)
        if self.concat:
            attended = self._joint(q, k, v, context, context_mask, token_mask, x_BRLW.shape[1])
            x_BRLW = x_BRLW + self.dropout(self.out(self._merge(attended).view_as(x_BRLW)))
        else:
            if token_mask is not None:
                token_mask = token_mask.repeat_interleave(x_BRLW.shape[1], dim=0)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=token_mask)
            x_BRLW = x_BRLW + self.dropout(self.out(self._merge(attended).view_as(x_BRLW)))
            (q,) = self._heads(self.cross_q(self.cross_norm(x_BRLW)).flatten(1, 2), 1)
            attended = F.scaled_dot_product_attention(q, *context, attn_mask=context_mask)
            x_BRLW = x_BRLW + self.dropout(self.cross_out(self._merge(attended).view_as(x_BRLW)))
        return x_BRLW + self.dropout(self.ff(self.ff_norm(x_BRLW)))

    def _joint(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        context: KeysValues,
        context_mask: Tensor,
        token_mask: Tensor | None,
        repeats: int,
    ) -> Tensor:
        # One softmax spans both parts, so the (already projected) context is laid out per repeat here.
        context_k, context_v = (c.repeat_interleave(repeats, dim=0) if repeats > 1 else c for c in context)
        own = context_mask.new_ones(()).expand(*context_mask.shape[:3], k.shape[2])
        mask = torch.cat([context_mask, own if token_mask is None else token_mask], dim=-1)
        if repeats > 1:
            mask = mask.repeat_interleave(repeats, dim=0)
        return F.scaled_dot_product_attention(
            q, torch.cat([context_k, k], dim=2), torch.cat([context_v, v], dim=2), attn_mask=mask
        )

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """``[B, L, parts * W]`` -> ``parts`` tensors ``[B, n, L, d]``."""
        return x.view(*x.shape[:2], parts, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def _merge(x: Tensor) -> Tensor:
        """``[B, n, L, d]`` -> ``[B, L, W]``, contiguous."""
        return x.transpose(1, 2).flatten(2).contiguous()


def init_weights(module: nn.Module, residual_scale: float) -> None:
    """Initialise every DiTBlock and AdaLN under ``module``.

    Matrices are Xavier-uniform, biases zero. Projections that write into the residual stream shrink by
    ``residual_scale`` so that its variance does not grow with depth; modulations start at zero, so
    that the blocks start as plain LayerNorm transformers.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    for child in module.modules():
        if isinstance(child, AdaLN):
            nn.init.zeros_(child.modulation.weight)
        elif isinstance(child, DiTBlock):
            outs = [child.out, child.ff.down] + ([] if child.concat else [child.cross_out])
            with torch.no_grad():
                for linear in outs:
                    linear.weight.mul_(residual_scale)
