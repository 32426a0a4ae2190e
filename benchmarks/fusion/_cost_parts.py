"""The policies that ``cost.py`` compares: one backbone, head and encoder, and a fusion each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from _models import Size, build
from torch import nn
from vla_core.batch import Batch
from vla_core.config import build_config
from vla_core.interfaces import FusionDims, GeometryFeatures
from vla_core.policy import VLAPolicy
from vla_core.registry import override
from vla_core.specs import RobotSpec
from vla_core.testing import make_observation, make_sample
from vla_core.types import Observation
from vla_geometry import (
    AlignedConcat,
    AlignLoss,
    CrossAttentionFusion,
    Gated,
    HeadContext,
    Hierarchical,
    LanguageGuided,
    MapAnythingConfig,
    MapAnythingEncoder,
    MeanPool,
    Position3D,
    Prefix,
)
from vla_heads import LayerwiseFM
from vla_vlm import Llava3D, Qwen25VL

NONE = "none"
FUSIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mean_pool": (MeanPool, {}),
    "aligned_concat": (AlignedConcat, {}),
    "cross_attention": (CrossAttentionFusion, {}),
    "gated": (Gated, {}),
    "language_guided": (LanguageGuided, {}),
    "prefix": (Prefix, {}),
    "head_context": (HeadContext, {}),
    "position_3d": (Position3D, {}),
    "position_3d, depth: geometry": (Position3D, {"depth": "geometry"}),
    "hierarchical": (Hierarchical, {}),
    "align_loss": (AlignLoss, {}),
}
"""Options are the defaults of each fusion's config."""
HEADS: dict[str, dict[str, Any]] = {"full": {}, "small": {"project_context": "per_layer"}}
"""``full``: blocks as wide as the backbone (QwenPI); ``small``: 1024 wide behind a projection (QwenPI_v3)."""


@dataclass(frozen=True)
class Recipe:
    """A policy that fusions are added to.

    Args:
        vlm, size: backbone and the name of its full size.
        head: a key of :data:`HEADS`, unless asked otherwise.
        batch: rows of a training step that fit 78 GiB.
        options: further options of the head.
    """

    vlm: type
    size: str
    head: str
    batch: int
    options: Mapping[str, Any] = field(default_factory=dict)


POLICIES = {
    "QwenMapAnythingPI": Recipe(Qwen25VL, "3b", "full", 8),
    "MapAnythingLlava3DPI": Recipe(Llava3D, "7b", "small", 2, {"max_blocks": 16}),
}


class Given(nn.Module):
    """An encoder whose features are there already: what is left is the cost of the fusion."""

    def __init__(self, features: GeometryFeatures) -> None:
        super().__init__()
        self.features = features
        self.dim = features.tokens.shape[-1]

    def forward(self, images: Any, cameras: Any, needs: frozenset[str] = frozenset()) -> GeometryFeatures:
        return self.features


def build_parts(
    recipe: Recipe, size: Size, geometry: str, head: str, device: torch.device, dtype: torch.dtype
) -> tuple[VLAPolicy, MapAnythingEncoder]:
    """The policy without geometry and the frozen encoder, of random weights, on the device."""
    # Registered here, so that PYTHONPATH is enough and nothing needs to be installed.
    override("vla.vlms", "backbone", recipe.vlm)
    override("vla.heads", "layerwise_fm", LayerwiseFM)
    policy = build(size, device, "QwenPI", dtype, vlm="backbone", **HEADS[head], **recipe.options)
    with device:
        encoder = MapAnythingEncoder.build(MapAnythingConfig(size=geometry), 2, (size.image, size.image))
    # Rays of random weights point anywhere, and depth behind the camera counts as none: let them look ahead.
    encoder.dense_head.get_parameter("1.conv2.2.bias").data[2] += 10.0
    return policy, encoder.to(dtype).eval()


def with_fusion(plain: VLAPolicy, encoder: Any, name: str) -> VLAPolicy:
    """The same backbone, head and encoder with a fusion between them, its weights as after some training."""
    if name == NONE:
        return plain
    cls, options = FUSIONS[name]
    dims, parameter = plain.model.vlm.dims, next(plain.model.parameters())
    torch.manual_seed(1)
    with parameter.device:
        fusion = cls.build(
            build_config(cls.Config, options, "fusion"),
            FusionDims(dims.hidden_size, encoder.dim, dims.n_layers, dims.grid),
        )
        with torch.no_grad():
            for weight in fusion.parameters():  # most start where geometry has no influence
                weight.add_(torch.randn_like(weight), alpha=0.02)
        head = _reading(plain.model.head, fusion.context_dim)
    fusion.to(parameter.dtype)
    head.to(parameter.dtype)
    return VLAPolicy(plain.model.vlm, head, encoder, fusion, pipelines=plain.pipelines).eval()


def _reading(head: Any, context_dim: int | None) -> Any:
    """The head itself, or one of the same weights that also reads extra tokens."""
    if context_dim is None:
        return head
    other = copy.copy(head)
    other._modules = dict(head._modules)
    other.dims = replace(head.dims, context_dim=context_dim)
    other.context_in = nn.Linear(context_dim, head.dims.hidden_size)
    return other


def own_parameters(policy: VLAPolicy, plain: VLAPolicy, encoder: nn.Module) -> list[nn.Parameter]:
    """What the variant has beside the shared parts."""
    shared = {id(p) for part in (plain, encoder) for p in part.parameters()}
    return [p for p in policy.model.parameters() if id(p) not in shared]


def batch_of(policy: VLAPolicy, rows: int, words: str, device: torch.device, targets: bool) -> Batch:
    """A collated batch with depth and calibration of both cameras."""
    (spec,), (pipeline,) = policy.specs.values(), policy.pipelines.values()
    seen = [_observe(spec, words, seed) for seed in range(rows)]
    if not targets:
        return policy.collate(seen).to(device)
    assert policy.collator is not None
    samples = [replace(make_sample(spec, seed), observation=o) for seed, o in enumerate(seen)]
    return policy.collator([pipeline(sample) for sample in samples]).to(device)


def _observe(spec: RobotSpec, words: str, seed: int) -> Observation:
    names, side = [c.name for c in spec.observation.cameras], spec.observation.cameras[0].height
    depth = np.random.default_rng(seed).uniform(0.5, 2.0, (len(names), side, side)).astype(np.float32)
    matrix = np.array([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]], np.float32)
    return replace(
        make_observation(spec, seed),
        instruction=words,
        depth=dict(zip(names, depth, strict=True)),
        intrinsics=dict.fromkeys(names, matrix),
        extrinsics=dict.fromkeys(names, np.eye(4, dtype=np.float32)),
    )
