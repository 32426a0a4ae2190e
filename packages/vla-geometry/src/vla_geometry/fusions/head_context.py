"""Compressed geometry straight to the action head; the backbone never sees it.

Shape legend: B rows, V views, h', w' geometry grid, G = V h' w' tokens, C geometry channels, K context
tokens, W context width, Y backbone layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.batch import Cameras
from vla_core.interfaces import Context, Fused, FusionDims, GeometryFeatures, TextTokens, VisualTokens
from vla_core.ranges import Count, check_ranges
from vla_core.traits import FusionTraits

from vla_geometry.fusions._attention import grid_positions
from vla_geometry.fusions._base import (
    GeometryFusion,
    known_tokens,
    resolve_heads,
    valid_views,
)
from vla_geometry.fusions._queries import GeometryQueries


@dataclass(frozen=True)
class HeadContextConfig:
    """YAML node of ``head_context``.

    Args:
        compress: ``pool`` averages each view in cells, ``qformer`` reads it with learned queries,
            ``per_layer`` likewise with own queries for each backbone layer (for a head with as many
            blocks, e.g. ``layerwise_fm`` without ``n_blocks``).
        pool_size: cells on a side of each view (``pool``): K = V * pool_size^2.
        n_tokens: K, the number of queries (``qformer``, ``per_layer``).
        width: width W of the context tokens; null is the encoder's dim.
        depth: layers of queries (``qformer``, ``per_layer``).
        n_heads: attention heads; null is W / 64 (at least 1).
    """

    compress: Literal["pool", "qformer", "per_layer"] = "qformer"
    pool_size: Count = 4
    n_tokens: Count = 16
    width: Count | None = None
    depth: Count = 2
    n_heads: Count | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


class HeadContext(GeometryFusion):
    """K geometry tokens for the head's cross-attention; vision tokens pass unchanged.

    Shapes: geometry ``[B, V, h', w', C]`` -> context ``[B, K, W]`` (``per_layer``: one for each of Y layers)
    with mask ``[B, K]``. ``pool`` keeps where cells are by positions and masks those of missing views; with
    fewer patches than cells on a side, cells repeat. The learned queries exclude missing views, and are
    masked only when a row has none left.

    Source: FALCON (arXiv 2510.17439), which gives spatial tokens to the head alone.
    Cost: ``pool``: parameters ``C W``, FLOP a row ``2 K C W``; ``qformer``: parameters
    ``depth (14 W^2 + 2 C W) + K W``, FLOP a row about ``depth (4 G C W + 4 K G W + 28 K W^2)``; ``per_layer``
    has Y K queries in place of K in all of these. The head reads K more tokens.
    """

    Config: ClassVar[type] = HeadContextConfig
    traits: FusionTraits = FusionTraits(bypasses_backbone=True)

    def __init__(self, config: HeadContextConfig, dims: FusionDims) -> None:
        super().__init__(dims.geometry_dim)
        self.config = config
        width = dims.geometry_dim if config.width is None else config.width
        heads = resolve_heads(width, config.n_heads)
        self.context_dim: int | None = width
        if config.compress == "pool":
            self.norm, self.project = nn.LayerNorm(dims.geometry_dim), nn.Linear(dims.geometry_dim, width)
        else:
            sets = dims.n_layers if config.compress == "per_layer" else 1
            self.queries = GeometryQueries(
                config.n_tokens, width, config.depth, heads, dims.geometry_dim, sets
            )

    @classmethod
    def build(cls, config: HeadContextConfig, dims: FusionDims) -> HeadContext:
        """Build from the encoder's dim and, for ``per_layer``, the backbone's number of layers."""
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
        if self.config.compress == "pool":
            return Fused(visual, context=self._pool(visual, geometry))
        tokens = self.queries(geometry, visual)
        seen = valid_views(visual).any(dim=1, keepdim=True).expand(-1, tokens.shape[2])
        sets = list(tokens.unbind(dim=1))
        per_layer = self.config.compress == "per_layer"
        return Fused(visual, context=Context(sets if per_layer else sets[0], seen))

    def _pool(self, visual: VisualTokens, geometry: GeometryFeatures) -> Context:
        tokens, _ = known_tokens(geometry, visual)
        size, (b, v) = self.config.pool_size, tokens.shape[:2]
        dtype = self.project.weight.dtype
        cells = F.adaptive_avg_pool2d(tokens.flatten(0, 1).permute(0, 3, 1, 2).float(), size)
        cells = cells.flatten(2).transpose(1, 2).reshape(b, v * size * size, -1).to(dtype)
        x = self.project(self.norm(cells).to(dtype))
        at: Tensor = grid_positions((v, size, size), x.shape[-1], x.device)
        mask = valid_views(visual).repeat_interleave(size * size, dim=1)
        # The head's key for a missing cell is masked there; zero, so that nothing of it is left to read.
        context = torch.where(mask[..., None], x + at.to(x.dtype), 0.0)
        return Context(context.to(dtype), mask)
