"""K geometry tokens in front of the visual tokens, inside the backbone.

Shape legend: B rows, V views, h', w' geometry grid, G = V h' w' tokens, C geometry channels, K prefix
tokens, W width of the queries, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from vla_core.batch import Cameras
from vla_core.interfaces import (
    Fused,
    FusionDims,
    GeometryFeatures,
    PromptSpec,
    TextTokens,
    VisualTokens,
)
from vla_core.ranges import Count, check_ranges

from vla_geometry.fusions._base import GeometryFusion, resolve_heads
from vla_geometry.fusions._queries import GeometryQueries


@dataclass(frozen=True)
class PrefixConfig:
    """YAML node of ``prefix``.

    Args:
        n_tokens: K, the number of prefix tokens (8, 16 or 32 are usual).
        width: width W of the learned queries; null is the encoder's dim.
        depth: layers of queries.
        n_heads: attention heads; null is W / 64 (at least 1).
    """

    n_tokens: Count = 16
    width: Count | None = None
    depth: Count = 2
    n_heads: Count | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


class Prefix(GeometryFusion):
    """K learned queries read the geometry of all views and go before the visual tokens.

    Shapes: geometry ``[B, V, h', w', C]`` -> prefix ``[B, K, H]``; vision tokens pass unchanged. The prompt
    reserves K ids (``PromptSpec.n_prefix``), so positions and masks hold for every backbone. Missing views
    are excluded. The backbone can attend to the new tokens from the first step: training starts near
    the vision-only policy, not at it.

    Source: Q-Former of BLIP-2 (arXiv 2301.12597) as a soft prefix.
    Cost: parameters ``depth (14 W^2 + 2 C W) + K W + W H``; FLOP a row about
    ``depth (4 G C W + 4 K G W + 28 K W^2) + 2 K W H``, and K more tokens in every layer of the backbone.
    """

    Config: ClassVar[type] = PrefixConfig

    def __init__(self, config: PrefixConfig, dims: FusionDims) -> None:
        super().__init__(dims.geometry_dim)
        self.prompt = PromptSpec(n_prefix=config.n_tokens)
        width = dims.geometry_dim if config.width is None else config.width
        heads = resolve_heads(width, config.n_heads)
        self.queries = GeometryQueries(config.n_tokens, width, config.depth, heads, dims.geometry_dim)
        self.out = nn.Linear(width, dims.hidden_size)
        # About the size of word embeddings, which is what stands beside them. Not zero: a backbone's norm
        # would blow the gradient of a zero vector up.
        nn.init.normal_(self.out.weight, std=0.02 / width**0.5)
        nn.init.zeros_(self.out.bias)

    @classmethod
    def build(cls, config: PrefixConfig, dims: FusionDims) -> Prefix:
        """Build from the backbone's hidden size and the encoder's dim."""
        return cls(config, dims)

    def tokens(self, visual: VisualTokens, geometry: GeometryFeatures) -> Tensor:
        """The prefix ``[B, K, H]``."""
        return self.out(self.queries(geometry, visual)[:, 0])

    def forward(
        self,
        visual: VisualTokens,
        geometry: GeometryFeatures,
        text: TextTokens | None = None,
        cameras: Cameras | None = None,
    ) -> Fused:
        """See the class; ``text`` and ``cameras`` are not read."""
        self.check(visual, geometry)
        return Fused(visual, prefix=self.tokens(visual, geometry))
