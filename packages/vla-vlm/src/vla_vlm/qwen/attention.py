"""Vision attention over a batch of equal images: transformers' weights, one call a block.

M images, N patch tokens, C width, D head dim.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward

from vla_vlm.common.kernels import for_kernel


class Windows(Protocol):
    """Which tokens attend to each other, when not all of an image do."""

    def split(self, x_BNhd: Tensor) -> Tensor: ...

    def join(self, x_WLhd: Tensor, batch: int) -> Tensor: ...

    def mask(self, batch: int) -> Tensor | None: ...


class BatchedVisionAttention(nn.Module):
    """Takes ``[M, N, C]`` and :class:`Windows` instead of packed tokens and sequence ends.

    Args:
        attention: of transformers' vision block; its projections are taken over.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.scaling, self.config = attention.scaling, attention.config
        self.num_key_value_groups = 1  # asked for by the attention functions

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        windows: Windows | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """``windows`` None is attention over the whole image; ``cu_seqlens`` is what the block passes."""
        assert position_embeddings is not None
        m, n, _ = hidden_states.shape
        qkv = self.qkv(hidden_states).view(m, n, 3, self.num_heads, self.head_dim)
        q, k = rotate(qkv[:, :, :2], *position_embeddings).unbind(2)
        v = qkv[:, :, 2]
        mask = None
        if windows is None:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        else:
            q, k, v = windows.split(q), windows.split(k), windows.split(v)
            mask = for_kernel(windows.mask(m), self.config._attn_implementation, q.dtype)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, _ = attend(self, q, k, v, attention_mask=mask, scaling=self.scaling, is_causal=False)
        out = out.reshape(m, n, -1) if windows is None else windows.join(out, m)
        return self.proj(out)


def rotate(x_MNRhD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """Rotary positions in float32, for queries and keys at once (R): half the kernel launches."""
    x = x_MNRhD.float()
    low, high = x.chunk(2, dim=-1)
    turned = torch.cat([-high, low], dim=-1)
    return (x * cos_ND[:, None, None] + turned * sin_ND[:, None, None]).to(x_MNRhD.dtype)


def replace_vision_attention(visual: Any) -> None:
    """Swap the attention of every vision block; parameters and their names stay."""
    for block in visual.blocks:
        block.attn = BatchedVisionAttention(block.attn)
