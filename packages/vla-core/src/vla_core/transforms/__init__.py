"""One list of transforms, applied to samples and inverted for predicted actions."""

from vla_core.transforms.base import Transform
from vla_core.transforms.pipeline import STEPS, Pipeline

__all__ = ["STEPS", "Pipeline", "Transform"]
