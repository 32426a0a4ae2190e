"""Local and global geometry: ``aligned_concat`` for the patches, ``prefix`` for the scene.

Shape legend: B rows, V views, N = V h w vision tokens, h', w' geometry grid, C geometry channels,
K prefix tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vla_core.batch import Cameras
from vla_core.interfaces import Fused, FusionDims, GeometryFeatures, TextTokens, VisualTokens

from vla_geometry.fusions._base import GeometryFusion
from vla_geometry.fusions.aligned_concat import AlignedConcat
from vla_geometry.fusions.prefix import Prefix, PrefixConfig


@dataclass(frozen=True)
class HierarchicalConfig(PrefixConfig):
    """YAML node of ``hierarchical``: the options of its prefix.

    Args:
        n_tokens: K, the number of prefix tokens (8, 16 or 32 are usual).
        width: width of the learned queries; null is the encoder's dim.
        depth: layers of queries.
        n_heads: attention heads; null is width / 64 (at least 1).
    """


class Hierarchical(GeometryFusion):
    """Each vision token gets the geometry at its place, and K prefix tokens sum up the scene.

    Shapes: vision ``[B, V h w, H]``, geometry ``[B, V, h', w', C]`` -> vision ``[B, V h w, H]`` and prefix
    ``[B, K, H]``. The vision tokens start as they are; the prefix is there from the first step.

    Source: the sum of :class:`AlignedConcat` and :class:`Prefix`.
    Cost: the sum of the two.
    """

    Config: ClassVar[type] = HierarchicalConfig

    def __init__(self, config: HierarchicalConfig, dims: FusionDims) -> None:
        super().__init__(dims.geometry_dim)
        self.local = AlignedConcat(dims.hidden_size, dims.geometry_dim)
        self.scene = Prefix(config, dims)
        self.prompt = self.scene.prompt

    @classmethod
    def build(cls, config: HierarchicalConfig, dims: FusionDims) -> Hierarchical:
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
        fused = self.local(visual, geometry)
        return Fused(fused.visual, prefix=self.scene.tokens(visual, geometry))
