"""A robot that stands still while its policy thinks, in a simulator whose time goes on."""

from __future__ import annotations

import numpy as np
from vla_core.rotations import from_matrix
from vla_core.specs import ActionSpec
from vla_core.types import Float


def holding(spec: ActionSpec, last: Float) -> Float:
    """The action ``[A]`` that changes nothing after ``last``: no delta, the same absolute target and grip."""
    action, slices = last.copy(), spec.slices()
    for group in spec.groups:
        if group.representation == "delta" and group.gripper == "none":
            turned = group.rotation != "none"
            action[slices[group.name]] = from_matrix(np.eye(3), group.rotation) if turned else 0.0
    return action
