"""What fusions that concatenate geometry to the vision tokens share.

Shape legend: B rows, V views, N vision tokens, h, w patch grid, C geometry channels, H hidden size.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from vla_core.errors import UserError
from vla_core.interfaces import (
    Fused,
    GeometryFeatures,
    PromptSpec,
    Terms,
    VisualTokens,
    VLMOutput,
    VLMRequest,
)


class ConcatFusion(nn.Module):
    """``[vision | project(geometry)]`` through a Linear 2H -> H.

    That Linear starts as identity on the vision half and zero on the geometry half, so that training
    starts exactly at the vision-only policy, whose pretrained layers expect such tokens. Geometry fades in
    from there: its half of the Linear has a gradient from the first step on.
    """

    needs: frozenset[str] = frozenset()
    request: VLMRequest = VLMRequest()
    prompt: PromptSpec = PromptSpec()
    train_only: bool = False
    context_dim: int | None = None

    def __init__(self, hidden_size: int, geometry_dim: int) -> None:
        super().__init__()
        self.geometry_dim = geometry_dim
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

    def loss(self, out: VLMOutput, geometry: GeometryFeatures) -> Terms:
        """No terms of its own."""
        return {}

    def check(self, visual: VisualTokens, geometry: GeometryFeatures) -> None:
        """Raise :class:`UserError` naming the field that does not fit."""
        rows, n = visual.tokens.shape[:2]
        v, h, w = visual.grid
        shape = list(geometry.tokens.shape)
        if n != v * h * w:
            raise UserError(
                f"visual.tokens: {n} tokens, but visual.grid {visual.grid} has {v * h * w}; "
                "the backbone must give one token per grid cell"
            )
        if len(shape) != 5:
            raise UserError(f"geometry.tokens: shape {shape} must be [B, V, h, w, C] (not pooled)")
        if shape[0] != rows:
            raise UserError(f"geometry.tokens: {shape[0]} rows, visual.tokens has {rows}")
        if shape[1] != v:
            raise UserError(
                f"geometry.tokens: {shape[1]} views, visual.grid has {v}; give both the same images"
            )
        if shape[4] != self.geometry_dim:
            raise UserError(
                f"geometry.tokens: {shape[4]} channels, the fusion was built with geometry_dim "
                f"{self.geometry_dim}; build it from the encoder's dim"
            )
