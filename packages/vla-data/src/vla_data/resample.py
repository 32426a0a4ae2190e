"""Another control rate of the same episodes: which frames are kept, and what a longer step commands.

A step of the new rate covers whole frames: step ``j`` begins at frame ``round(j r)``, ``r`` being the
recorded rate over the new one (it need not be an integer), and ends where the next one begins; the last
one ends with the episode. So the picture, the state and the command of a step belong together, and no
motion is lost or counted twice. Shapes: F frames, M steps, D dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core import rotations
from vla_core.errors import ConfigError
from vla_core.specs import GroupSpec
from vla_core.types import Float

from vla_data.formats.info import FILE
from vla_data.frames import Frames
from vla_data.robot.instructions import Instructions
from vla_data.robot.vectors import Vector

SAME = 1e-6
"""Rates that differ by a smaller share are one rate."""


def check_rate(fps: float, recorded: float, control_hz: float | None, where: str) -> None:
    """That ``recorded`` frames a second can be read at ``fps``, for a robot of ``control_hz`` (None: unsaid).

    Raises:
        ConfigError: a rate above the recorded one, whose steps nobody recorded; or a robot with a third rate.
    """
    if fps > recorded * (1 + SAME):
        raise ConfigError(
            f"fps: {fps:g} is above the {recorded:g} Hz that were recorded, and steps between frames would "
            f"be made up; give {recorded:g} or less"
        )
    known = (recorded, fps)
    if control_hz is not None and not any(abs(control_hz / rate - 1) < SAME for rate in known):
        raise ConfigError(
            f"fps: {fps:g} is not the rate of the robot, control_hz {control_hz:g} in {where}; "
            f"give fps: {control_hz:g} or correct control_hz"
        )


def rate_note(recorded: float, control_hz: float | None, fps: float | None, where: str) -> str | None:
    """What to say of a robot whose ``control_hz`` is not the ``recorded`` rate, where no ``fps`` is given."""
    if control_hz is None or fps is not None or abs(control_hz / recorded - 1) < SAME:
        return None
    remedy = (
        f"give fps: {control_hz:g}, or correct control_hz" if control_hz < recorded else "correct control_hz"
    )
    return (
        f"{where} says control_hz {control_hz:g}, {FILE} says fps {recorded:g}: frames are taken as steps of "
        f"{control_hz:g} Hz, {control_hz / recorded:.3g} times as fast; if {FILE} is right, {remedy}"
    )


def check_velocities(groups: Sequence[GroupSpec], where: str) -> None:
    """That no velocity would be summed as if it were a change of position.

    Raises:
        ConfigError: a group called a velocity, without a unit by time.
    """
    for group in groups:
        summed = group.representation == "delta" and not group.unit.endswith("/s")
        if summed and "velocit" in group.name.lower():
            raise ConfigError(
                f"fps: the action group '{group.name}' is a velocity by its name, and with unit "
                f"'{group.unit}' "
                f'its numbers would be summed over a step; write unit: "{group.unit}/s" in {where} to have '
                "them averaged, or leave fps out"
            )


def step_starts(frames: int, ratio: float) -> NDArray[np.int64]:
    """First frame ``[M]`` of each step of an episode of ``frames``; ``ratio`` >= 1 frames a step."""
    steps = np.arange(int(np.floor(frames / ratio)) + 2)
    # Half a frame counts up. The small number keeps 2.4999999 from 25 / 10 on the side of 2.5.
    starts = np.floor(steps * ratio + 0.5 + 1e-9).astype(np.int64)
    return starts[starts < frames]


def kept_frames(lengths: Sequence[int], ratio: float) -> list[NDArray[np.int64]]:
    """Of each episode the frames at which steps begin."""
    return [step_starts(length, ratio) for length in lengths]


def resample(frames: Frames, lengths: Sequence[int], kept: Sequence[NDArray[np.int64]]) -> Frames:
    """``frames`` of episodes of ``lengths`` at the steps that begin at ``kept``.

    State, calibration and instruction are those of a step's first frame, so that they go with its picture.
    Actions: see :func:`combine`.
    """
    offsets = np.cumsum([0, *lengths])
    starts = np.concatenate([o + k for o, k in zip(offsets, kept, strict=False)])
    stops = np.r_[starts[1:], offsets[-1]]
    state, action = frames.state, frames.action
    assert action.rows is not None
    return Frames(
        state if state.rows is None else replace(state, rows=state.rows[starts]),
        Vector(combine(action.rows, action.groups, starts, stops), action.groups),
        {key: values[starts] for key, values in frames.calibration.items()},
        Instructions(frames.instructions.texts, frames.instructions.of[starts]),
        frames.rows[starts],
        frames.notes,
    )


def combine(
    rows: Float, groups: Sequence[GroupSpec], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> Float:
    """The commands ``[M, D]`` of steps that cover frames ``[starts, stops)`` of ``rows [F, D]``.

    By the representation of each group:

    - ``absolute``: the step's last target, where the robot is sent by the step's end. Nothing is
      interpolated, so a gripper of 0 and 1 stays one, and a rotation is one that was commanded.
    - ``delta``: the sum; of a rotation the product, later turns from the left, about the axes of the base.
      A group whose unit ends in ``/s`` is a velocity: its mean.
    - ``relative``: that of the step's first frame, for it counts from the state of that frame.
    """
    out = np.empty((len(starts), rows.shape[1]), np.float32)
    start = 0
    for group in groups:
        part = slice(start, start + group.dim)
        start += group.dim
        values = rows[:, part]
        if group.representation == "absolute":
            out[:, part] = values[stops - 1]
        elif group.representation == "relative":
            out[:, part] = values[starts]
        elif group.rotation != "none":
            out[:, part] = _composed(values, group.rotation, starts, stops)
        else:
            total: NDArray[Any] = np.add.reduceat(values.astype(np.float64), starts, axis=0)
            if group.unit.endswith("/s"):
                total = total / (stops - starts)[:, None]
            out[:, part] = total
    return out


def _composed(
    values: Float, kind: str, starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> NDArray[np.float64]:
    matrices = rotations.to_matrix(values, kind)
    total = matrices[starts]
    for later in range(1, int((stops - starts).max())):
        inside = starts + later < stops
        total[inside] = matrices[starts[inside] + later] @ total[inside]
    return rotations.from_matrix(total, kind)
