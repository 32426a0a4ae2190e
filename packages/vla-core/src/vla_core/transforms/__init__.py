"""One list of transforms, applied to samples and inverted for predicted actions."""

from vla_core.transforms.base import Transform
from vla_core.transforms.pipeline import Pipeline

__all__ = ["Pipeline", "Transform"]
