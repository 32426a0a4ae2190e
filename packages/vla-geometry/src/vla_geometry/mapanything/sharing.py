"""Multi-view stage of MapAnything: attention across all views and within each view in turn.

Shape legend: B rows, V views, S scale tokens (0 or 1), L tokens of a view (patches, then its class token),
E input width, C width.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from vla_geometry.mapanything.blocks import EPS, Block
from vla_geometry.mapanything.sizes import Architecture


class AlternatingAttention(nn.Module):
    """Tokens ``[B, V, L, E]``, scale token ``[B, 1, E]`` -> normalised ``[B, V, L, C]``, ``[B, 1, C]``.

    There may be no scale token (``[B, 0, E]``).
    Even blocks see all views and the scale token, odd blocks one view each (the scale token skips them).
    Only the first view, which defines the frame, is marked: with the sinusoid of position 0.
    """

    view_pos_table: Tensor

    def __init__(self, size: Architecture) -> None:
        super().__init__()
        same = size.encoder_dim == size.dim
        self.proj_embed = nn.Identity() if same else nn.Linear(size.encoder_dim, size.dim)
        self.self_attention_blocks = nn.ModuleList(
            Block(size.dim, size.heads, size.swiglu, size.layer_scale) for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.dim, eps=EPS)
        # sin(0) and cos(0) alternate; the published weights hold it as a buffer.
        self.register_buffer("view_pos_table", (torch.arange(size.dim) % 2).float()[None])

    def forward(
        self,
        x_BVLE: Tensor,
        scale_BSE: Tensor,
        view_mask: Tensor | None = None,
        taps: Collection[int] = (),
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Also the tokens after the blocks in ``taps``, normalised like the last.

        Views that are False in ``view_mask`` (bool ``[B, V]``) are seen by no other.
        """
        b, v, n, _ = x_BVLE.shape
        seen = None
        if view_mask is not None:
            # The scale token is always seen, so that no row is without a key. Where there is none, a row
            # without views sees them all.
            own = view_mask.new_ones(scale_BSE.shape[:2])
            seen = torch.cat([view_mask.repeat_interleave(n, dim=1), own], dim=1)
            seen = seen | ~seen.any(dim=1, keepdim=True)
        x, scale, tapped = self.proj_embed(x_BVLE), self.proj_embed(scale_BSE), []
        x = torch.cat([x[:, :1] + self.view_pos_table, x[:, 1:]], dim=1)
        for i, block in enumerate(self.self_attention_blocks):
            if i % 2 == 0:
                joint = block(torch.cat([x.flatten(1, 2), scale], dim=1), seen)
                x, scale = joint[:, : v * n].unflatten(1, (v, n)), joint[:, v * n :]
            else:
                x = block(x.flatten(0, 1)).unflatten(0, (b, v))
            if i in taps:
                tapped.append(self.norm(x))
        return self.norm(x), self.norm(scale), tapped
