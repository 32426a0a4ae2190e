"""Mean-pooled geometry beside every vision token.

Shape legend: B rows, V views, N vision tokens, h, w patch grid, C geometry channels, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from vla_core.batch import Cameras
from vla_core.interfaces import Fused, FusionDims, GeometryFeatures, TextTokens, VisualTokens

from vla_geometry.fusions._base import valid_views
from vla_geometry.fusions._concat import ConcatFusion


@dataclass(frozen=True)
class MeanPoolConfig:
    """YAML node of ``mean_pool``; it has no options."""


class MeanPool(ConcatFusion):
    """One vector for the scene: mean of all geometry tokens, to H, broadcast, concat, Linear 2H -> H.

    Shapes: vision ``[B, N, H]``, geometry ``[B, V, h, w, C]`` (any grid) -> vision ``[B, N, H]``.
    Views that are missing (masked in ``visual.mask``) stay out of the mean; with none left it is zero.
    Where things are in the image is lost: the result does not change when geometry positions are permuted.

    Source: the fusion of the MapAnythingLlava3D policies, with a start at the vision-only policy.
    Cost: parameters ``C H + 2 H^2``; FLOP a row ``2 C H + 4 N H^2``. No extra tokens.
    """

    Config: ClassVar[type] = MeanPoolConfig

    @classmethod
    def build(cls, config: MeanPoolConfig, dims: FusionDims) -> MeanPool:
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
        # The projection is affine: projecting the mean is the mean of projections, V h w times cheaper.
        return self.join(visual, _mean_over_views(geometry.tokens, visual))


def _mean_over_views(tokens_BVhwC: Tensor, visual: VisualTokens) -> Tensor:
    """Mean ``[B, 1, C]`` over the tokens of views with a valid vision token."""
    valid = valid_views(visual)
    per_view = tokens_BVhwC.float().mean(dim=(2, 3))
    # where, not multiplication: whatever a missing view's features hold (even NaN) must not get through.
    total = per_view.where(valid[..., None], 0.0).sum(dim=1, keepdim=True)
    return total / valid.sum(dim=1).clamp(min=1)[:, None, None]
