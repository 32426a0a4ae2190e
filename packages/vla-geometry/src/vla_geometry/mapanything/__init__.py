"""MapAnything's encoder (arXiv 2509.13414) with the published weights' names."""

from vla_geometry.mapanything.config import MapAnythingConfig
from vla_geometry.mapanything.encoder import MapAnythingEncoder

__all__ = ["MapAnythingConfig", "MapAnythingEncoder"]
