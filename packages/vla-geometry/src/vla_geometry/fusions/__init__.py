"""Fusions: one file each. ``mean_pool`` keeps one geometry vector, ``aligned_concat`` one per token."""

from vla_geometry.fusions.aligned_concat import AlignedConcat
from vla_geometry.fusions.mean_pool import MeanPool

__all__ = ["AlignedConcat", "MeanPool"]
