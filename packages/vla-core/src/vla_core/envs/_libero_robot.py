"""LIBERO's Panda arm as the published demonstrations record it: for LIBERO, LIBERO-PRO and LIBERO-plus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vla_core.specs import ActionSpec, GroupSpec

EMBODIMENT = "libero_panda"
Polarity = Literal["close_positive", "open_positive"]
"""What a policy's gripper number means. ``close_positive``: the simulator's own, -1 opens and +1 closes.
``open_positive``: 1 is open and 0 closed, as Open X-Embodiment's standardisation leaves it."""
REST = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
"""No motion, gripper open."""

STATE = (
    GroupSpec("end_effector_position", 3, "m"),
    GroupSpec("end_effector_rotation", 3, "rad", rotation="axis_angle"),
    GroupSpec("fingers", 2, "m"),
)
ACTION = ActionSpec(
    groups=(
        GroupSpec("end_effector_position", 3, "1", representation="delta"),
        GroupSpec("end_effector_rotation", 3, "1", representation="delta"),
        GroupSpec("gripper", 1, "1", gripper="close_positive"),
    ),
    horizon=1,
    control_hz=20.0,
)


def action_spec(gripper: Polarity) -> ActionSpec:
    """``[7]``, with a gripper of that polarity."""
    *hand, last = ACTION.groups
    return replace(ACTION, groups=(*hand, replace(last, gripper=gripper)))


def command_of(action: NDArray[np.float64], gripper: Polarity) -> NDArray[np.float64]:
    """The simulator's action ``[7]``, within +-1, for that of a policy. More than half open opens."""
    command = np.clip(action, -1.0, 1.0)
    if gripper == "open_positive":
        command[6] = -1.0 if action[6] > 0.5 else 1.0
    return command


def state_of(raw: Mapping[str, Any]) -> NDArray[np.float32]:
    """``[8]``. The rotation is that of the published data: an angle up to two pi, about the axis of the
    quaternion as the simulator has it. The shorter way round would flip its sign here and there, as the hand
    that points down is half a turn from upright."""
    quaternion = np.asarray(raw["robot0_eef_quat"], np.float64)  # x, y, z, w
    axis, cos_half = quaternion[:3], float(np.clip(quaternion[3], -1.0, 1.0))
    sin_half = np.sqrt(1.0 - cos_half * cos_half)
    rotation = axis * (2.0 * np.arccos(cos_half) / sin_half) if sin_half > 0.0 else np.zeros(3)
    return np.concatenate([raw["robot0_eef_pos"], rotation, raw["robot0_gripper_qpos"]]).astype(np.float32)
