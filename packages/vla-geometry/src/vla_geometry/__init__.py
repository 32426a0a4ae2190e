"""Geometry from images, and its fusion with what a vision-language backbone sees."""

from vla_core.batch import Cameras
from vla_core.interfaces import GeometryFeatures

from vla_geometry.fusions import AlignedConcat, MeanPool
from vla_geometry.tiny import TinyGeometryConfig, TinyGeometryEncoder

__all__ = [
    "AlignedConcat",
    "Cameras",
    "GeometryFeatures",
    "MeanPool",
    "TinyGeometryConfig",
    "TinyGeometryEncoder",
]
