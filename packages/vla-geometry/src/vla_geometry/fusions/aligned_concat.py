"""Geometry beside the vision token that looks at the same place.

Shape legend: B rows, V views, N = V h w vision tokens, h', w' geometry grid, C geometry channels,
H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vla_core.batch import Cameras
from vla_core.interfaces import Fused, FusionDims, GeometryFeatures, TextTokens, VisualTokens

from vla_geometry.fusions._base import known_tokens
from vla_geometry.fusions._concat import ConcatFusion
from vla_geometry.fusions._resample import resample


@dataclass(frozen=True)
class AlignedConcatConfig:
    """YAML node of ``aligned_concat``; it has no options."""


class AlignedConcat(ConcatFusion):
    """Token by token: resample geometry to the vision grid, to H, concat, Linear 2H -> H.

    Shapes: vision ``[B, V h w, H]``, geometry ``[B, V, h', w', C]`` -> vision ``[B, V h w, H]``. Both grids
    cover the whole image, view by view; resampling is bilinear (antialiased when it shrinks) and exact
    when the grids are equal. A missing view counts as zero.

    Source: the point-wise counterpart of ``mean_pool``, which keeps where things are.
    Cost: parameters ``C H + 2 H^2``; FLOP a row ``N (2 C H + 4 H^2)``. No extra tokens.
    """

    Config: ClassVar[type] = AlignedConcatConfig

    @classmethod
    def build(cls, config: AlignedConcatConfig, dims: FusionDims) -> AlignedConcat:
        """Build from the backbone's hidden size and the encoder's dim."""
        return cls(dims.hidden_size, dims.geometry_dim)

    def forward(
        self,
        visual: VisualTokens,
        geometry: GeometryFeatures,
        text: TextTokens | None = None,
        cameras: Cameras | None = None,
    ) -> Fused:
        """See the class; ``text`` and ``cameras`` are not read."""
        self.check(visual, geometry)
        tokens, _ = known_tokens(geometry, visual)
        return self.join(visual, resample(tokens, visual.grid[1], visual.grid[2]).flatten(1, 3))
