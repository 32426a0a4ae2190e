"""Typed interfaces, transforms, registry, config, checkpoints and the policy class.

The numpy half imports without torch; ``Batch``, ``VLAPolicy`` and ``build_policy`` need the extra ``torch``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_core.config import build_config, load_tree
from vla_core.errors import ConfigError, SpecMismatch, UserError
from vla_core.specs import (
    ActionSpec,
    CameraSpec,
    GroupSpec,
    ObservationSpec,
    RobotSpec,
)
from vla_core.stats import NormStats, VectorStats
from vla_core.transforms import Pipeline
from vla_core.types import ActionChunk, Observation, PreviousChunk, Sample

if TYPE_CHECKING:
    from vla_core.assemble import build_policy
    from vla_core.batch import Batch
    from vla_core.framework import FrameworkConfig
    from vla_core.model import VLAModel
    from vla_core.policy import VLAPolicy
    from vla_core.rows import Row

__all__ = [
    "ActionChunk",
    "ActionSpec",
    "Batch",
    "CameraSpec",
    "ConfigError",
    "FrameworkConfig",
    "GroupSpec",
    "NormStats",
    "Observation",
    "ObservationSpec",
    "Pipeline",
    "PreviousChunk",
    "RobotSpec",
    "Row",
    "Sample",
    "SpecMismatch",
    "UserError",
    "VLAModel",
    "VLAPolicy",
    "VectorStats",
    "build_config",
    "build_policy",
    "load_tree",
]

# Imported on first use: the numpy half must work where torch is not installed.
_TORCH = {
    "Batch": "vla_core.batch",
    "FrameworkConfig": "vla_core.framework",
    "Row": "vla_core.rows",
    "VLAModel": "vla_core.model",
    "VLAPolicy": "vla_core.policy",
    "build_policy": "vla_core.assemble",
}


def __getattr__(name: str) -> Any:
    if name in _TORCH:
        from importlib import import_module

        return getattr(import_module(_TORCH[name]), name)
    raise AttributeError(f"module 'vla_core' has no attribute '{name}'")
