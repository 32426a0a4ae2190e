"""What the blocks of every diffusion transformer here are made of (DiT, arXiv 2212.09748).

Shape legend: B rows, R repeats (noise draws that share an observation), L own tokens, S context
tokens, W width, n heads, d head width.

Repeats never copy the context: cross-attention folds R into the query sequence (``[B, n, R L, d]``
against ``[B, n, S, d]``), self-attention folds it into the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from torch import Tensor, nn
from vla_core.shard import ShardUnit

from vla_heads import few_rows
from vla_heads.category import CategoryLinear

KeysValues: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values ``[B, n, S, d]`` of one block's context."""


class UnitLinear(ShardUnit, nn.Linear):
    """A Linear that is called apart from the block that holds it, and so is gathered by itself."""


class UnitSequential(ShardUnit, nn.Sequential):
    """Layers that are called apart from the block that holds them, likewise."""


class FeedForward(nn.Module):
    """Linear W -> 4W, tanh-approximated GELU, Linear 4W -> W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, residual: Tensor | None = None, dropout: nn.Module | None = None) -> Tensor:
        """Of ``x``; with ``residual`` that plus what ``dropout`` leaves of it."""
        return few_rows.linear(self.down, few_rows.linear(self.up, x, gelu=True), residual, dropout=dropout)


def per_token(condition: Tensor, x: Tensor) -> Tensor:
    """``condition [B, R, C]`` as ``[B, R, 1, C]``, for ``x [B, R, L, W]``; one per token stays as it is."""
    return condition if condition.ndim == x.ndim else condition[..., None, :]


class AdaLN(nn.Module):
    """LayerNorm whose scale and shift come from the time (DiT, arXiv 2212.09748), zero at the start.

    The two halves of ``modulation`` are called apart so that the scales and shifts of a fixed time
    grid can be computed once and reused.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.modulation = UnitLinear(width, 2 * width)
        self.norm = nn.LayerNorm(width, eps, elementwise_affine=False)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """``x [B, R, L, W]``; ``modulation [B, R, 2W]``, or one per token ``[B, R, L, 2W]`` (or
        broadcastable), = [scale | shift]."""
        scale, shift = per_token(modulation, x).chunk(2, dim=-1)
        return few_rows.norm(self.norm, x, scale, shift)


def split_heads(x: Tensor, parts: int, n_heads: int) -> tuple[Tensor, ...]:
    """``[B, L, parts * W]`` -> ``parts`` tensors ``[B, n, L, d]``."""
    return x.view(*x.shape[:2], parts, n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, n, L, d]`` -> ``[B, L, W]``, contiguous."""
    return x.transpose(1, 2).flatten(2).contiguous()


class Block(ShardUnit, nn.Module, ABC):
    """Base of the blocks that :class:`~vla_heads.flow_head.FlowHead` stacks: attention and its norm.

    A block that reads a context has ``context_kv``, and gets what :meth:`project_context` gives; one
    that doesn't gets None. What is done once for all steps, that projection and ``ada.modulation``, runs
    outside the block's forward, by layers that are shard units of their own.
    ``forward(x, context, context_mask, modulation, token_mask)``:

    - ``x [B, R, L, W]``: own tokens.
    - ``context_mask``: bool ``[B, 1, 1, S]``; False is never attended to.
    - ``modulation``: ``[B, R, 2W]`` or one per token ``[B, R, L, 2W]``, or broadcastable, from
      ``ada.modulation``.
    - ``token_mask``: bool ``[B, 1, 1, L]`` of own tokens others may attend to, or None for all.
    """

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.streamed = n_heads, False
        self.ada = AdaLN(width)

    def pack(self) -> None:
        """Kernels for few rows, where there are some (see :mod:`vla_heads.few_rows`)."""
        self.streamed = few_rows.mark(self)

    @property
    @abstractmethod
    def residual_outputs(self) -> tuple[nn.Linear, ...]:
        """The projections that write into the residual stream."""

    @abstractmethod
    def project_context(self, context: Tensor) -> KeysValues:
        """Keys and values of a context ``[B, S, C]``; once per observation."""

    def self_attention(self, qkv: Tensor, token_mask: Tensor | None, repeats: int) -> Tensor:
        """``qkv [B R, L, 3W]`` -> ``[B R, L, W]``; a token sees those of its own repeat."""
        if token_mask is not None:
            token_mask = token_mask.repeat_interleave(repeats, dim=0)
        q, k, v = split_heads(qkv, 3, self.n_heads)
        return few_rows.attention(q, k, v, token_mask, self.streamed)

    def joint_attention(
        self, qkv: Tensor, context: KeysValues, context_mask: Tensor, token_mask: Tensor | None, repeats: int
    ) -> Tensor:
        """``qkv [B R, L, 3W]`` -> ``[B R, L, W]``; a token sees the context and those of its own repeat."""
        q, k, v = split_heads(qkv, 3, self.n_heads)
        # One softmax spans both parts, so the (already projected) context is laid out per repeat here.
        context_k, context_v = (c.repeat_interleave(repeats, dim=0) if repeats > 1 else c for c in context)
        own = context_mask.new_ones(()).expand(*context_mask.shape[:3], k.shape[2])
        mask = torch.cat([context_mask, own if token_mask is None else token_mask], dim=-1)
        if repeats > 1:
            mask = mask.repeat_interleave(repeats, dim=0)
        keys, values = torch.cat([context_k, k], dim=2), torch.cat([context_v, v], dim=2)
        return few_rows.attention(q, keys, values, mask, self.streamed)

    def cross_attention(self, q: Tensor, context: KeysValues, context_mask: Tensor) -> Tensor:
        """``q [B, R L, W]`` -> the same shape."""
        (q,) = split_heads(q, 1, self.n_heads)
        return few_rows.attention(q, *context, context_mask, self.streamed)


def init_weights(module: nn.Module) -> None:
    """Initialise every Linear, Block and AdaLN under ``module``.

    Matrices are Xavier-uniform, biases zero. Projections that write into the residual stream shrink by
    the root of their number so that its variance does not grow with depth; modulations start at zero,
    so that the blocks start as plain LayerNorm transformers.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, CategoryLinear):
            child.reset_parameters()
    outs: list[nn.Linear] = []
    for child in module.modules():
        if isinstance(child, AdaLN):
            nn.init.zeros_(child.modulation.weight)
        elif isinstance(child, Block):
            outs.extend(child.residual_outputs)
    with torch.no_grad():
        for linear in outs:
            linear.weight.mul_(len(outs) ** -0.5)
