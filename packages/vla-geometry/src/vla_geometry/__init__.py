"""Geometry from images, and its fusion with what a vision-language backbone sees."""

from vla_core.batch import Cameras
from vla_core.interfaces import GeometryFeatures

from vla_geometry.fusions import (
    AlignedConcat,
    AlignLoss,
    CrossAttentionFusion,
    Gated,
    HeadContext,
    Hierarchical,
    LanguageGuided,
    MeanPool,
    Position3D,
    Prefix,
)
from vla_geometry.mapanything import MapAnythingConfig, MapAnythingEncoder
from vla_geometry.tiny import TinyGeometryConfig, TinyGeometryEncoder

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
