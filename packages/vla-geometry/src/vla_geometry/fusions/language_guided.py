"""The instruction decides which geometry matters, before it meets vision.

Shape legend: B rows, V views, N = V h w vision tokens, h', w' geometry grid, G = V h' w' geometry tokens,
C geometry channels, M instruction tokens, H hidden size, W width, n heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from vla_core.batch import Cameras
from vla_core.interfaces import Fused, FusionDims, GeometryFeatures, TextTokens, VisualTokens
from vla_core.ranges import Count, check_ranges

from vla_geometry.fusions._attention import grid_positions
from vla_geometry.fusions._base import (
    GeometryFusion,
    check_text,
    known_tokens,
    resolve_heads,
)
from vla_geometry.fusions._instruction import InstructionEncoder
from vla_geometry.fusions._resample import resample


@dataclass(frozen=True)
class LanguageGuidedConfig:
    """YAML node of ``language_guided``.

    Args:
        width: width W of the instruction's transformer and of the queries.
        depth: its layers; at least 1, or word order would be lost.
        n_heads: attention heads; null is W / 64 (at least 1).
    """

    width: Count = 256
    depth: Count = 2
    n_heads: Count | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


class LanguageGuided(GeometryFusion):
    """Each geometry token is scaled by how much the instruction attends to it, then joins its vision token.

    Shapes: text ``[B, S, H]``, of which M columns are the instruction; vision ``[B, V h w, H]``, geometry
    ``[B, V, h', w', C]`` -> vision ``[B, V h w, H]``. A small transformer reads the instruction in order;
    its tokens query the geometry (with positions, without missing views). A geometry token whose share
    of that attention is r times the average gets the weight ``2 r / (1 + r)``: 1 on average, 0 when
    ignored, below 2 whatever the number of tokens. A row without an instruction weights all by 1.
    Weighted geometry is resampled to the vision grid and added through a projection that starts at
    zero, so training starts exactly at the vision-only policy.

    Source: instruction-conditioned token selection as in OTTER (arXiv 2503.03734), applied to geometry.
    Cost: parameters ``H W + (12 depth + 1) W^2 + C W + C H``; FLOP a row
    ``2 M (H W + W^2) + depth (24 M W^2 + 4 M^2 W) + 2 G C W + 2 M G W + 2 N C H``. No extra tokens.
    """

    Config: ClassVar[type] = LanguageGuidedConfig

    def __init__(self, config: LanguageGuidedConfig, dims: FusionDims) -> None:
        super().__init__(dims.geometry_dim)
        self.hidden_size, width = dims.hidden_size, config.width
        self.n_heads = resolve_heads(width, config.n_heads)
        self.instruction = InstructionEncoder(dims.hidden_size, width, config.depth, self.n_heads)
        self.norm = nn.LayerNorm(dims.geometry_dim)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(dims.geometry_dim, width, bias=False)
        self.project = nn.Linear(dims.geometry_dim, dims.hidden_size)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    @classmethod
    def build(cls, config: LanguageGuidedConfig, dims: FusionDims) -> LanguageGuided:
        """Build from the backbone's hidden size and the encoder's dim."""
        return cls(config, dims)

    def forward(
        self,
        visual: VisualTokens,
        geometry: GeometryFeatures,
        text: TextTokens | None = None,
        cameras: Cameras | None = None,
    ) -> Fused:
        """See the class; ``cameras`` is not read.

        Raises:
            UserError: no text, or shapes that do not fit.
        """
        self.check(visual, geometry)
        tokens, mask, dtype = *self._tokens(visual, geometry), self.project.weight.dtype
        weights = self._weights(tokens, mask, check_text(text, self.hidden_size)).to(dtype)
        tokens = resample(tokens * weights[..., None], visual.grid[1], visual.grid[2]).flatten(1, 3)
        return Fused(replace(visual, tokens=visual.tokens + self.project(tokens).to(visual.tokens.dtype)))

    def weights(self, visual: VisualTokens, geometry: GeometryFeatures, text: TextTokens) -> Tensor:
        """The weight fp32 ``[B, V, h', w']`` of each geometry token, to look at."""
        self.check(visual, geometry)
        return self._weights(*self._tokens(visual, geometry), check_text(text, self.hidden_size))

    def _tokens(self, visual: VisualTokens, geometry: GeometryFeatures) -> tuple[Tensor, Tensor]:
        tokens, mask = known_tokens(geometry, visual)
        dtype = self.project.weight.dtype
        return self.norm(tokens.to(dtype)).to(dtype), mask

    def _weights(self, tokens: Tensor, mask_BG: Tensor, text: TextTokens) -> Tensor:
        instruction, said = self.instruction(text)
        _, v, h, w, _ = tokens.shape
        q, k = self.query(instruction), self.key(tokens.flatten(1, 3))
        k = k + grid_positions((v, h, w), k.shape[-1], k.device).to(k.dtype)
        q, k = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (q, k))
        logits = (q @ k.transpose(2, 3)).float() / k.shape[-1] ** 0.5
        # A finite floor: a row whose views are all missing must not become NaN.
        logits = logits.masked_fill(~mask_BG[:, None, None, :], torch.finfo(torch.float32).min)
        share_BMG = logits.softmax(dim=-1).mean(dim=1)
        share_BG = share_BMG.where(said[..., None], 0.0).sum(dim=1)
        share_BG = share_BG / said.sum(dim=1, keepdim=True).clamp(min=1)
        ratio = share_BG * mask_BG.sum(dim=1, keepdim=True)
        weights = (2 * ratio / (1 + ratio)).where(said.any(dim=1, keepdim=True), 1.0)
        return weights.unflatten(1, (v, h, w))
