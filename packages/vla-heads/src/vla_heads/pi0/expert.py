"""A Gemma decoder whose tokens attend to another decoder's keys and values and to each other.

Module names are those of transformers' Gemma, so that published experts load as they are.

Shape legend: N rows (observations times repeats), L own tokens, K times a row (1, or L), S prefix tokens,
W width, n heads, m key-value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.interfaces import KVDims
from vla_core.packing import merged
from vla_core.shard import ShardUnit

from vla_heads import few_rows
from vla_heads.few_queries import shared_heads

KeysValues: TypeAlias = tuple[Tensor, Tensor]
Rotation: TypeAlias = tuple[Tensor, Tensor]


def rotation(position: Tensor, head_dim: int, theta: float) -> Rotation:
    """Cosines and sines ``[N, 1, L, d]`` fp32 of rotary positions, long ``[N, L]``."""
    even = torch.arange(0, head_dim, 2, device=position.device, dtype=torch.float32)
    angle = position[:, None, :, None].float() * theta ** (-even / head_dim)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotary positions on ``x [N, n, L, d]``; the pairs are (i, i + d/2)."""
    first, second = x.float().chunk(2, dim=-1)
    return (x * by[0] + torch.cat([-second, first], dim=-1) * by[1]).to(x.dtype)


class RMSNorm(nn.Module):
    """Gemma's RMSNorm in fp32, or with ``adaptive`` scale, shift and a gate from a condition.

    The gate multiplies what the sublayer adds to the residual; it starts at zero. Without it: None.
    """

    def __init__(self, width: int, adaptive: bool, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        if adaptive:
            self.dense = nn.Linear(width, 3 * width)
        else:
            self.weight = nn.Parameter(torch.zeros(width))
        self.adaptive, self.streamed = adaptive, False

    def forward(self, x_NLW: Tensor, condition_NKW: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Normalised ``[N, L, W]`` and the gate ``[N, K, W]``."""
        if not self.adaptive:
            return few_rows.rms_norm(x_NLW, self.weight, None, self.eps, self.streamed), None
        assert condition_NKW is not None
        scale, shift, gate = few_rows.linear(self.dense, condition_NKW).chunk(3, dim=-1)
        return few_rows.rms_norm(x_NLW, scale, shift, self.eps, self.streamed), gate.to(x_NLW.dtype)

    def pack(self) -> None:
        """Kernels for few rows, where there are some (see :mod:`vla_heads.few_rows`)."""
        self.streamed = few_rows.mark(self)


class Attention(nn.Module):
    """Grouped-query attention of own tokens to [prefix | own tokens]."""

    def __init__(self, width: int, kv: KVDims) -> None:
        super().__init__()
        self.dims = kv
        self.q_proj = nn.Linear(width, kv.n_heads * kv.head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv.n_kv_heads * kv.head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv.n_kv_heads * kv.head_dim, bias=False)
        self.o_proj = nn.Linear(kv.n_heads * kv.head_dim, width, bias=False)
        self.qkv: nn.Linear | None = None
        self.streamed = False

    def forward(
        self,
        x_NLW: Tensor,
        prefix: KeysValues,
        mask: Tensor,
        by: Rotation,
        residual: Tensor,
        gate: Tensor | None,
    ) -> Tensor:
        """``residual`` plus what ``gate`` leaves of the attention.

        ``prefix``: keys (rotated) and values ``[N, m, S, d]``; mask bool ``[N, 1, L, S + L]``.
        """
        q, k, v = (
            part.unflatten(-1, (-1, self.dims.head_dim)).transpose(1, 2) for part in self._project(x_NLW)
        )
        if self.streamed and few_rows.takes_prefix(q, k, prefix[0]):
            turns = (by[0].flatten(0, 1), by[1].flatten(0, 1))
            attended = few_rows.prefixed_attention(q, k, v, *prefix, mask.flatten(0, 1), *turns)
            return few_rows.linear(self.o_proj, attended, residual, gate)
        q, k = rotate(q, by), torch.cat([prefix[0], rotate(k, by)], dim=2)
        v = torch.cat([prefix[1], v], dim=2)
        if q.is_cuda and not torch.is_grad_enabled():
            attended = shared_heads(q, k, v, mask)
        else:
            k, v = self._for_all_heads(k), self._for_all_heads(v)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return few_rows.linear(self.o_proj, attended.transpose(1, 2).flatten(2), residual, gate)

    def pack(self) -> None:
        """One product for queries, keys and values (see :mod:`vla_core.packing`)."""
        self.qkv = merged(self.q_proj, self.k_proj, self.v_proj)
        del self.q_proj, self.k_proj, self.v_proj
        self.streamed = few_rows.mark(self)

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        if self.qkv is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        heads, shared, width = self.dims.n_heads, self.dims.n_kv_heads, self.dims.head_dim
        return few_rows.linear(self.qkv, x).split([heads * width, shared * width, shared * width], dim=-1)

    def _for_all_heads(self, x: Tensor) -> Tensor:
        # A view for one key-value head; unlike enable_gqa it leaves every fused kernel usable with a mask.
        groups = self.dims.n_heads // self.dims.n_kv_heads
        return x[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2)


class FeedForward(nn.Module):
    """Gemma's gated feed-forward, ``down(gelu(gate x) * up x)``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.gate_up: nn.Linear | None = None

    def forward(self, x: Tensor, residual: Tensor, gate: Tensor | None) -> Tensor:
        """``residual`` plus what ``gate`` leaves of it, ``[..., W]`` all."""
        if self.gate_up is None:
            hidden = F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)
        else:
            hidden = few_rows.linear(self.gate_up, x, gelu=True, paired=True)
        return few_rows.linear(self.down_proj, hidden, residual, gate)

    def pack(self) -> None:
        """One product for gate and values (see :mod:`vla_core.packing`)."""
        self.gate_up = merged(self.gate_proj, self.up_proj)
        del self.gate_proj, self.up_proj
        few_rows.mark(self.gate_up, paired=True)
        few_rows.mark(self.down_proj)


class Layer(ShardUnit, nn.Module):
    """Norm, attention, norm, feed-forward, with (gated) residuals."""

    def __init__(self, width: int, hidden: int, kv: KVDims, adaptive: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, adaptive)
        self.self_attn = Attention(width, kv)
        self.post_attention_layernorm = RMSNorm(width, adaptive)
        self.mlp = FeedForward(width, hidden)

    def forward(
        self, x: Tensor, prefix: KeysValues, mask: Tensor, by: Rotation, condition: Tensor | None
    ) -> Tensor:
        normed, gate = self.input_layernorm(x, condition)
        x = self.self_attn(normed, prefix, mask, by, x, gate)
        normed, gate = self.post_attention_layernorm(x, condition)
        return self.mlp(normed, x, gate)


class Expert(nn.Module):
    """``n_layers`` layers and the last norm."""

    def __init__(self, n_layers: int, width: int, hidden: int, kv: KVDims, adaptive: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, hidden, kv, adaptive) for _ in range(n_layers))
        self.norm = RMSNorm(width, adaptive)

    def forward(
        self,
        x_NLW: Tensor,
        prefix: Sequence[KeysValues],
        mask: Tensor,
        by: Rotation,
        condition: Tensor | None,
    ) -> Tensor:
        """``[N, L, W]``; layer i attends to ``prefix[i]``. ``condition [N, K, W]`` for adaptive norms."""
        x = x_NLW
        for layer, keys_values in zip(self.layers, prefix, strict=True):
            x = layer(x, keys_values, mask, by, condition)
        normed, _ = self.norm(x, condition)
        return normed
