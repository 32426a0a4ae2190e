"""What a policy is told of a simulator's observation."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from vla_core.types import Observation

Hidden = Literal["images"]


def told(observation: Observation, instruction: str | None, hide: Hidden | None) -> Observation:
    """``observation`` with ``instruction`` unless None, and with black images where they are hidden.

    Depth shows the same: none of it is measured then."""
    if instruction is not None:
        observation = replace(observation, instruction=instruction)
    if hide == "images":
        black = {name: np.zeros_like(image) for name, image in observation.images.items()}
        unmeasured = None
        if observation.depth is not None:
            unmeasured = {name: np.zeros_like(depth) for name, depth in observation.depth.items()}
        observation = replace(observation, images=black, depth=unmeasured)
    return observation
