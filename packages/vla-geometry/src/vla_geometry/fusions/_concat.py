"""What fusions that concatenate geometry to the vision tokens share.

Shape legend: B rows, V views, N vision tokens, h, w patch grid, C geometry channels, H hidden size.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from vla_core.interfaces import Fused, VisualTokens

from vla_geometry.fusions._base import GeometryFusion


class ConcatFusion(GeometryFusion):
    """``[vision | project(geometry)]`` through a Linear 2H -> H.

    That Linear starts as identity on the vision half and zero on the geometry half, so that training
    starts exactly at the vision-only policy, whose pretrained layers expect such tokens. Geometry fades in
    from there: its half of the Linear has a gradient from the first step on.
    """

    def __init__(self, hidden_size: int, geometry_dim: int) -> None:
        super().__init__(geometry_dim)
        self.project = nn.Linear(geometry_dim, hidden_size)
        self.out = nn.Linear(2 * hidden_size, hidden_size)
        with torch.no_grad():
            self.out.weight[:, :hidden_size].copy_(torch.eye(hidden_size))
            self.out.weight[:, hidden_size:].zero_()
            self.out.bias.zero_()

    def join(self, visual: VisualTokens, geometry_BNC: Tensor) -> Fused:
        """Concatenate ``[B, N, C]`` (N may be 1: broadcast) to the vision tokens and project to H."""
        dtype = self.out.weight.dtype
        geometry = self.project(geometry_BNC.to(dtype)).to(dtype)
        geometry = geometry.expand(-1, visual.tokens.shape[1], -1)
        tokens = self.out(torch.cat([visual.tokens.to(dtype), geometry], dim=-1))
        return Fused(replace(visual, tokens=tokens.to(visual.tokens.dtype)))
