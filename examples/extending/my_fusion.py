"""A fusion in one file: the mean geometry of each view gates that view's visual tokens.

Shape legend: B rows, V views, N visual tokens (V * h * w), H hidden size, C geometry channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from vla_core.batch import Cameras
from vla_core.interfaces import (
    Fused,
    FusionDims,
    GeometryFeatures,
    PromptSpec,
    Terms,
    TextTokens,
    VisualTokens,
    VLMOutput,
    VLMRequest,
)
from vla_core.traits import FusionTraits


class MyFusion(nn.Module):
    """Entry point ``my_fusion`` in ``vla.fusions``."""

    @dataclass(frozen=True)
    class Config:
        """The YAML node ``framework.fusion``."""

        strength: float = 1.0

    needs: frozenset[str] = frozenset()  # neither depth nor points: the encoder skips its dense heads
    request = VLMRequest()
    prompt = PromptSpec()
    traits = FusionTraits()  # geometry is needed at inference too
    context_dim: int | None = None

    def __init__(self, config: Config, dims: FusionDims) -> None:
        super().__init__()
        self.strength = config.strength
        self.gate = nn.Linear(dims.geometry_dim, dims.hidden_size)
        nn.init.zeros_(self.gate.weight)  # a pretrained backbone starts undisturbed
        nn.init.zeros_(self.gate.bias)

    @classmethod
    def build(cls, config: Any, dims: FusionDims) -> MyFusion:
        """Sizes come from backbone and encoder (``dims``), never from config."""
        return cls(config, dims)

    def forward(
        self,
        visual: VisualTokens,
        geometry: GeometryFeatures,
        text: TextTokens,
        cameras: Cameras | None,
    ) -> Fused:
        """The visual tokens, scaled per view and channel; everything else is untouched."""
        views = visual.grid[0]
        if geometry.tokens.shape[1] != views:
            raise ValueError(f"geometry has {geometry.tokens.shape[1]} views, vision has {views}")
        gate_BV1H = torch.tanh(self.gate(geometry.tokens.mean(dim=(2, 3)))).unsqueeze(2)
        tokens_BVnH = visual.tokens.unflatten(1, (views, -1))
        tokens_BNH = (tokens_BVnH * (1 + self.strength * gate_BV1H)).flatten(1, 2)
        return Fused(replace(visual, tokens=tokens_BNH))

    def loss(self, out: VLMOutput, geometry: GeometryFeatures) -> Terms:
        """No auxiliary loss."""
        return {}
