"""Vision patches query all geometry tokens.

Shape legend: B rows, V views, N = V h w vision tokens, G = V h' w' geometry tokens, C geometry channels,
H hidden size, W attention width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn
from vla_core.batch import Cameras
from vla_core.interfaces import Fused, FusionDims, GeometryFeatures, TextTokens, VisualTokens
from vla_core.ranges import Count, check_ranges

from vla_geometry.fusions._attention import CrossAttention, grid_positions
from vla_geometry.fusions._base import GeometryFusion, known_tokens, resolve_heads


@dataclass(frozen=True)
class CrossAttentionFusionConfig:
    """YAML node of ``cross_attention``.

    Args:
        width: width W of the attention; null is the backbone's hidden size.
        n_heads: attention heads; null is W / 64 (at least 1).
    """

    width: Count | None = None
    n_heads: Count | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


class CrossAttentionFusion(GeometryFusion):
    """One cross-attention layer: each vision token takes what it wants from the geometry of all views.

    Shapes: vision ``[B, V h w, H]``, geometry ``[B, V, h', w', C]`` -> vision ``[B, V h w, H]``. The grids
    need not match: queries and keys carry positions (view, row, column). Missing views are excluded.
    Added to the vision tokens through a projection that starts at zero, so training starts exactly at
    the vision-only policy.

    Source: Evo-0 (arXiv 2507.00416), with positions and a zero start.
    Cost: parameters ``2 W (H + C)``; FLOP a row ``4 N H W + 4 G C W + 4 N G W``. No extra tokens.
    """

    Config: ClassVar[type] = CrossAttentionFusionConfig

    def __init__(self, config: CrossAttentionFusionConfig, dims: FusionDims) -> None:
        super().__init__(dims.geometry_dim)
        hidden = dims.hidden_size
        self.width = hidden if config.width is None else config.width
        heads = resolve_heads(self.width, config.n_heads)
        self.attention = CrossAttention(hidden, dims.geometry_dim, self.width, hidden, heads)
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.attention.out.bias)

    @classmethod
    def build(cls, config: CrossAttentionFusionConfig, dims: FusionDims) -> CrossAttentionFusion:
        """Build from the backbone's hidden size and the encoder's dim."""
        return cls(config, dims)

    def forward(
        self,
        visual: VisualTokens,
        geometry: GeometryFeatures,
        text: TextTokens | None = None,
        cameras: Cameras | None = None,
    ) -> Fused:
        """See the class; ``text`` and ``cameras`` are not read."""
        self.check(visual, geometry)
        tokens, mask = known_tokens(geometry, visual)
        grid = (tokens.shape[1], tokens.shape[2], tokens.shape[3])
        device = visual.tokens.device
        positions = (
            grid_positions(visual.grid, self.width, device),
            grid_positions(grid, self.width, device),
        )
        added = self.attention(visual.tokens, tokens.flatten(1, 3), mask, positions)
        return Fused(replace(visual, tokens=visual.tokens + added.to(visual.tokens.dtype)))
