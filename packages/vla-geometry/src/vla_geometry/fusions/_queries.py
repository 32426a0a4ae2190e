"""Learned queries that compress geometry to a fixed number of tokens (a small Q-Former).

Shape legend: B rows, Y sets of K queries, G geometry tokens, C geometry channels, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vla_core.interfaces import GeometryFeatures, VisualTokens

from vla_geometry.fusions._attention import CrossAttention, grid_positions
from vla_geometry.fusions._base import known_tokens
from vla_geometry.transformer import Block


class Layer(nn.Module):
    """Queries read the geometry, then each other, then an MLP."""

    def __init__(self, width: int, geometry_dim: int, n_heads: int) -> None:
        super().__init__()
        self.cross = CrossAttention(width, geometry_dim, width, width, n_heads)
        self.block = Block(width, n_heads)

    def forward(self, x_BYKW: Tensor, context: Tensor, mask: Tensor, at_key: Tensor) -> Tensor:
        # Sets share the geometry's keys and values, but do not read each other.
        read = self.cross(x_BYKW.flatten(1, 2), context, mask, (None, at_key))
        x = x_BYKW + read.view_as(x_BYKW)
        return self.block(x.flatten(0, 1)).view_as(x)


class GeometryQueries(nn.Module):
    """K learned queries -> ``[B, K, W]`` (BLIP-2, arXiv 2301.12597, without its text side).

    Geometry keys and values carry positions (view, row, column), so where things are is not lost; missing
    views are excluded. With ``n_sets`` there are as many independent sets of queries, which share the
    weights of the layers.

    Parameters: about ``depth (14 W^2 + 2 C W)`` plus the queries; FLOP a row with Y sets
    ``depth (4 G C W + Y (4 K G W + 28 K W^2 + 4 K^2 W))``.
    """

    def __init__(
        self, n_tokens: int, width: int, depth: int, n_heads: int, geometry_dim: int, n_sets: int = 1
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(n_sets, n_tokens, width))
        self.layers = nn.ModuleList(Layer(width, geometry_dim, n_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, geometry: GeometryFeatures, visual: VisualTokens) -> Tensor:
        """``[B, n_sets, K, W]``, normalised."""
        tokens, mask = known_tokens(geometry, visual)
        grid = (tokens.shape[1], tokens.shape[2], tokens.shape[3])
        at_key = grid_positions(grid, self.queries.shape[-1], tokens.device)
        x = self.queries.expand(tokens.shape[0], -1, -1, -1)
        for layer in self.layers:
            x = layer(x, tokens.flatten(1, 3), mask, at_key)
        return self.norm(x).to(self.queries.dtype)
