"""A robot that stands still while its policy thinks, in a simulator whose time goes on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.rotations import from_matrix
from vla_core.specs import ActionSpec


def holding(spec: ActionSpec, last: NDArray[Any]) -> NDArray[Any]:
    """The action ``[A]`` that changes nothing after ``last``: no delta, the same absolute target and grip."""
    action, slices = last.copy(), spec.slices()
    for group in spec.groups:
        if group.representation == "delta" and group.gripper == "none":
            turned = group.rotation != "none"
            action[slices[group.name]] = from_matrix(np.eye(3), group.rotation) if turned else 0.0
    return action


def held_steps(hold_steps: int | str, round_trip_ms: float, hz: float) -> int:
    """Control steps for which a robot that waits holds still at an answer; ``measured``: while it took."""
    return math.ceil(round_trip_ms / 1000 * hz) if isinstance(hold_steps, str) else hold_steps
