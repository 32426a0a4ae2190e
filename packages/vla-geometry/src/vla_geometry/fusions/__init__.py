"""Fusions: one file each. They differ in what they keep of the geometry and in where it enters."""

from vla_geometry.fusions.align_loss import AlignLoss
from vla_geometry.fusions.aligned_concat import AlignedConcat
from vla_geometry.fusions.cross_attention import CrossAttentionFusion
from vla_geometry.fusions.gated import Gated
from vla_geometry.fusions.head_context import HeadContext
from vla_geometry.fusions.hierarchical import Hierarchical
from vla_geometry.fusions.language_guided import LanguageGuided
from vla_geometry.fusions.mean_pool import MeanPool
from vla_geometry.fusions.position_3d import Position3D
from vla_geometry.fusions.prefix import Prefix

__all__ = [
    "AlignLoss",
    "AlignedConcat",
    "CrossAttentionFusion",
    "Gated",
    "HeadContext",
    "Hierarchical",
    "LanguageGuided",
    "MeanPool",
    "Position3D",
    "Prefix",
]
