"""Typed interfaces, transforms, registry, config, checkpoints and the policy class.

The numpy half imports without torch; ``Batch``, ``VLAPolicy`` and ``build_policy`` need the extra ``torch``.
"""

from vla_core.specs import (
    ActionSpec,
    CameraSpec,
    GroupSpec,
    ObservationSpec,
    RobotSpec,
)
from vla_core.stats import NormStats, VectorStats
from vla_core.types import ActionChunk, Observation, Sample

__all__ = [
    "ActionChunk",
    "ActionSpec",
    "CameraSpec",
    "GroupSpec",
    "NormStats",
    "Observation",
    "ObservationSpec",
    "RobotSpec",
    "Sample",
    "VectorStats",
]
