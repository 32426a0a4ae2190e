"""Multi-view alternating attention (VGGT, arXiv 2503.11651; ``info_sharing`` in MapAnything).

Shape legend: B rows, V views, L tokens of a view, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_geometry.transformer import Block


class InfoSharing(nn.Module):
    """Blocks that attend within each view and across all views in turn.

    Each view carries a learned embedding of its place in the order (the first one defines the frame).
    A scale token takes part in the across-view blocks only: it belongs to no view.
    """

    def __init__(self, dim: int, depth: int, n_heads: int, n_views: int) -> None:
        super().__init__()
        self.view_embedding = nn.Parameter(torch.empty(n_views, dim))
        self.scale_token = nn.Parameter(torch.empty(dim))
        self.blocks = nn.ModuleList(Block(dim, n_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BVLC: Tensor, view_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens ``[B, V, L, C]`` -> tokens ``[B, V, L, C]`` and the scale token ``[B, C]``, normalised.

        Views that are False in ``view_mask`` (bool ``[B, V]``) are seen by no other.
        """
        b, v, n, _ = x_BVLC.shape
        seen = None
        if view_mask is not None:
            # The scale token is always seen, so that no row is without a key.
            seen = torch.cat([view_mask.repeat_interleave(n, dim=1), view_mask.new_ones(b, 1)], dim=1)
        x = x_BVLC + self.view_embedding[:, None]
        scale = self.scale_token.expand(b, 1, -1)
        for i, block in enumerate(self.blocks):
            if i % 2 == 0:
                x = block(x.flatten(0, 1)).view(b, v, n, -1)
            else:
                joint = block(torch.cat([x.flatten(1, 2), scale], dim=1), seen)
                x, scale = joint[:, :-1].view(b, v, n, -1), joint[:, -1:]
        return self.norm(x), self.norm(scale[:, 0])
