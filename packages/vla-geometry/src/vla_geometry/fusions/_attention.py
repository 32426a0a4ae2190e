"""Attention of some tokens to others, and where tokens lie.

Shape legend: B rows, L queries, G keys, W width, n heads, V views, h, w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """``[B, L, query_dim]`` attends to ``[B, G, context_dim]`` -> ``[B, L, out_dim]``.

    Both sides are normalised here. Keys have no bias: a softmax would not notice it.
    Parameters: ``W (query_dim + 2 context_dim + out_dim)``. FLOP a row:
    ``2 L W (query_dim + out_dim) + 4 G W context_dim + 4 L G W``.
    """

    def __init__(self, query_dim: int, context_dim: int, width: int, out_dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_norm, self.context_norm = nn.LayerNorm(query_dim), nn.LayerNorm(context_dim)
        self.query = nn.Linear(query_dim, width)
        self.key = nn.Linear(context_dim, width, bias=False)
        self.value = nn.Linear(context_dim, width)
        self.out = nn.Linear(width, out_dim)

    def forward(
        self,
        x_BLD: Tensor,
        context_BGC: Tensor,
        mask_BG: Tensor,
        positions: tuple[Tensor | None, Tensor] | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x_BLD: queries.
            context_BGC: keys and values.
            mask_BG: False keys are not attended to; a row without any attends to all evenly.
            positions: what to add to projected queries (None: nothing) ``[L, W]`` and to projected keys
                and values ``[G, W]``.
        """
        dtype = self.out.weight.dtype
        context = self.context_norm(context_BGC.to(dtype)).to(dtype)
        q, k, v = (
            self.query(self.query_norm(x_BLD.to(dtype)).to(dtype)),
            self.key(context),
            self.value(context),
        )
        if positions is not None:
            at_query, at_key = positions
            q = q if at_query is None else q + at_query.to(q.dtype)
            k, v = k + at_key.to(k.dtype), v + at_key.to(v.dtype)
        # A row whose views are all missing: finite, where softmax would give NaN.
        mask = mask_BG | ~mask_BG.any(dim=1, keepdim=True)
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.out(x.transpose(1, 2).flatten(2)).to(dtype)


def sinusoid(values: Tensor, dim: int, shortest: float, longest: float) -> Tensor:
    """Sines and cosines ``[..., dim]`` fp32 of ``values [...]`` at geometrically spaced wavelengths."""
    half = dim // 2
    steps = torch.arange(half, device=values.device, dtype=torch.float32) / max(1, half - 1)
    wavelength = shortest * (longest / shortest) ** steps
    angle = values.float()[..., None] * (2 * torch.pi / wavelength)
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=-1), (0, dim - 2 * half))


def grid_positions(grid: tuple[int, int, int], dim: int, device: torch.device) -> Tensor:
    """Where the tokens of ``grid`` (V, h, w) lie: fp32 ``[V * h * w, dim]``.

    View, row and column get a third of the channels each. Rows and columns are fractions of the image, so
    that tokens of two grids that look at the same place have nearly the same position.
    """
    v, h, w = grid
    part = dim // 3
    view = sinusoid(torch.arange(v, device=device), part, 2.5, 40.0)[:, None, None].expand(v, h, w, part)
    row = sinusoid((torch.arange(h, device=device) + 0.5) / h, part, 0.1, 4.0)
    column = sinusoid((torch.arange(w, device=device) + 0.5) / w, dim - 2 * part, 0.1, 4.0)
    row, column = row[None, :, None].expand(v, h, w, -1), column[None, None].expand(v, h, w, -1)
    return torch.cat([view, row, column], dim=-1).flatten(0, 2)
