"""Geometry as a teacher: a loss while training, nothing at inference.

Shape legend: B rows, V views, N = V h w vision tokens, S prompt tokens, h', w' geometry grid,
C geometry channels, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.batch import Cameras
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import (
    Fused,
    FusionDims,
    GeometryFeatures,
    Terms,
    TextTokens,
    VisualTokens,
    VLMOutput,
    VLMRequest,
)
from vla_core.ranges import Layer
from vla_core.traits import FusionTraits

from vla_geometry.fusions._base import GeometryFusion
from vla_geometry.fusions._resample import resample


@dataclass(frozen=True)
class AlignLossConfig:
    """YAML node of ``align_loss``; ``trainer.loss_weights: {align: 0.5}`` weighs it.

    Args:
        layer: whose hidden states are aligned, from 0 (the embeddings) to the backbone's number of
            layers; null is three quarters of them: late enough to be shaped by the backbone, early enough
            that the last layers stay free for the action.
    """

    layer: Layer | None = None


class AlignLoss(GeometryFusion):
    """Pulls a mid-layer's image tokens towards the geometry at the same place: mean of ``1 - cosine``.

    Shapes: hidden ``[B, S, H]`` at the image tokens -> LayerNorm, MLP -> ``[B, N, C]``; geometry
    ``[B, V, h', w', C]`` (resampled to the vision grid, without gradient) -> loss term ``align``. Missing
    views do not count. Tokens pass unchanged, and at inference neither the encoder nor this module runs.
    Keep the encoder frozen: it is the target.

    Source: Spatial Forcing (arXiv 2510.12276).
    Cost: parameters ``H^2 + H C``; FLOP a row ``2 N (H^2 + H C)`` in training, zero at inference.
    """

    Config: ClassVar[type] = AlignLossConfig
    traits: FusionTraits = FusionTraits(train_only=True)

    def __init__(self, config: AlignLossConfig, dims: FusionDims) -> None:
        super().__init__(dims.geometry_dim)
        if dims.grid is None:
            raise ConfigError(
                "align_loss: FusionDims.grid is missing; build it with the backbone's dims.grid"
            )
        self.grid = dims.grid
        self.layer = round(0.75 * dims.n_layers) if config.layer is None else config.layer
        if not 0 <= self.layer <= dims.n_layers:
            raise ConfigError(
                f"layer: {self.layer} must be between 0 and the backbone's {dims.n_layers} layers"
            )
        self.request = VLMRequest(layers=(self.layer,))
        hidden = dims.hidden_size
        self.project = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, dims.geometry_dim)
        )

    @classmethod
    def build(cls, config: AlignLossConfig, dims: FusionDims) -> AlignLoss:
        """Build from the backbone's sizes and the encoder's dim.

        Raises:
            ConfigError: a layer the backbone does not have.
        """
        return cls(config, dims)

    def forward(
        self,
        visual: VisualTokens,
        geometry: GeometryFeatures,
        text: TextTokens | None = None,
        cameras: Cameras | None = None,
    ) -> Fused:
        """Checks shapes and passes the vision tokens on."""
        self.check(visual, geometry)
        if visual.grid[1:] != self.grid:
            raise UserError(
                f"visual.grid: {visual.grid[1:]} tokens a view, the fusion was built for {self.grid}"
            )
        return Fused(visual)

    def loss(self, out: VLMOutput, geometry: GeometryFeatures) -> Terms:
        """``{"align": scalar fp32}`` in [0, 2]; zero when every view is missing."""
        target = resample(geometry.tokens.detach(), *self.grid)
        rows, v = target.shape[:2]
        views = geometry.view_mask
        if views is None:
            views = torch.ones(rows, v, dtype=torch.bool, device=target.device)
        valid = views.repeat_interleave(self.grid[0] * self.grid[1], dim=1)
        # Whether a backbone's span holds the tokens of missing views or not, the valid ones come in view
        # order on both sides: sorted to the front, they pair up. No shape depends on the data.
        order = _front(valid)
        columns = _front(out.spans["image"] & out.mask)[:, : valid.shape[1]]
        hidden = _pick(out.hidden[self.layer], columns)
        target = _pick(target.flatten(1, 3), order).float()
        valid = valid.gather(1, order)
        weight = self.project[1].weight
        assert isinstance(weight, Tensor)
        predicted = self.project(hidden.to(weight.dtype)).float()
        cosine = F.cosine_similarity(predicted, target.where(valid[..., None], 1.0), dim=-1)
        return {"align": (1 - cosine).where(valid, 0.0).sum() / valid.sum().clamp(min=1)}


def _front(mask_BN: Tensor) -> Tensor:
    """Indices ``[B, N]``: the True ones in order, then the others."""
    return (~mask_BN).to(torch.uint8).argsort(dim=1, stable=True)


def _pick(x_BLC: Tensor, index_BN: Tensor) -> Tensor:
    """Rows ``[B, N, C]`` of each row's tokens."""
    return x_BLC.gather(1, index_BN[..., None].expand(-1, -1, x_BLC.shape[-1]))
