"""Geometry from images, and its fusion with what a vision-language backbone sees.

Names are imported on first use: naming one encoder or fusion imports what that one is made of.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_core.batch import Cameras
    from vla_core.interfaces import GeometryFeatures

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
    from vla_geometry.mapanything import MapAnythingConfig, MapAnythingEncoder
    from vla_geometry.tiny import TinyGeometryConfig, TinyGeometryEncoder

_MODULES = {
    "AlignLoss": "vla_geometry.fusions.align_loss",
    "AlignedConcat": "vla_geometry.fusions.aligned_concat",
    "Cameras": "vla_core.batch",
    "CrossAttentionFusion": "vla_geometry.fusions.cross_attention",
    "Gated": "vla_geometry.fusions.gated",
    "GeometryFeatures": "vla_core.interfaces",
    "HeadContext": "vla_geometry.fusions.head_context",
    "Hierarchical": "vla_geometry.fusions.hierarchical",
    "LanguageGuided": "vla_geometry.fusions.language_guided",
    "MapAnythingConfig": "vla_geometry.mapanything",
    "MapAnythingEncoder": "vla_geometry.mapanything",
    "MeanPool": "vla_geometry.fusions.mean_pool",
    "Position3D": "vla_geometry.fusions.position_3d",
    "Prefix": "vla_geometry.fusions.prefix",
    "TinyGeometryConfig": "vla_geometry.tiny",
    "TinyGeometryEncoder": "vla_geometry.tiny",
}
__all__ = [
    "AlignLoss",
    "AlignedConcat",
    "Cameras",
    "CrossAttentionFusion",
    "Gated",
    "GeometryFeatures",
    "HeadContext",
    "Hierarchical",
    "LanguageGuided",
    "MapAnythingConfig",
    "MapAnythingEncoder",
    "MeanPool",
    "Position3D",
    "Prefix",
    "TinyGeometryConfig",
    "TinyGeometryEncoder",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'vla_geometry' has no attribute '{name}'")
