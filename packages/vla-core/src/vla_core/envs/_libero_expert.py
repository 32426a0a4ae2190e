"""A scripted demonstrator for LIBERO's tasks of one object that goes onto or into another.

It knows where things are, which a policy does not. LIBERO's published demonstrations are a person's; these
are straighter, and pause at the grasp. Positions in metres, in the simulator's frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_core.envs._libero_simulator import LiberoSimulator, Raw
from vla_core.errors import ConfigError
from vla_core.rotations import from_matrix, to_matrix

SUITES = ("libero_spatial", "libero_object")
"""Suites whose tasks are of that kind."""

Vector = NDArray[np.float64]
_STEP_M, _STEP_RAD = 0.05, 0.5  # what an action of 1 asks for
_GAIN = 0.6  # of the remaining way is asked for in a step
_DOWN = np.diag([1.0, -1.0, -1.0])  # the hand points down, its fingers open along y
_CLEAR = 0.10  # above an object before it is grasped, and above what it is carried over
_FINGER = 0.025  # an object taller than that is grasped so far below its top
_CLOSE_STEPS, _OPEN_STEPS, _PATIENCE = 12, 10, 60


@dataclass(frozen=True)
class _Phase:
    """Go to ``goal`` (within ``near``), or stay for ``steps``."""

    goal: Vector
    closed: bool
    near: float = 0.0
    steps: int = _PATIENCE
    carries: bool = False


class PickAndPlace:
    """Grasp from above, carry over, let go; again from the start when the object was lost.

    A bowl is held by the rim at its freer side, everything else in the middle.

    Args:
        sim: just reset and settled; its goal is ``[["on" | "in", object, place]]``.
        raw: the observation then.

    Raises:
        ConfigError: the goal is of another kind.
    """

    def __init__(self, sim: LiberoSimulator, raw: Raw) -> None:
        goal = sim.goal
        if len(goal) != 1 or len(goal[0]) != 3 or goal[0][0].lower() not in ("on", "in"):
            raise ConfigError(f"env.task: its goal {goal} is not one object onto or into another; no expert")
        _, self._object, place = goal[0]
        self._place = place.removesuffix("_contain_region")
        if self._object not in sim.objects or self._place not in sim.objects:
            raise ConfigError(f"env.task: the expert moves one object to another, not to '{place}'")
        self._low, self._high = sim.extent(self._object)
        self._place_top = float(sim.extent(self._place)[1][2])
        self._into = place != self._place
        others = [_at(raw, name) for name in sim.objects if name not in (self._object, self._place)]
        self._offset = self._hold(_at(raw, self._object), others)
        self._phases: list[_Phase] = []
        self._steps = 0

    def _hold(self, where: Vector, others: list[Vector]) -> Vector:
        """From the object's position to that of the fingers."""
        height = max(float(self._high[2]) - _FINGER, 0.0)
        if "bowl" not in self._object:
            return np.array([0.0, 0.0, height])
        rim = float(self._high[1]) - 0.004
        sides = [np.array([0.0, side, height]) for side in (rim, -rim)]
        return max(sides, key=lambda side: min(np.linalg.norm((where + side - o)[:2]) for o in others))

    def _plan(self, raw: Raw) -> list[_Phase]:
        there, target = _at(raw, self._object), _at(raw, self._place)
        grasp = there + self._offset
        bottom = self._offset[2] - self._low[2]  # of the fingers above the object's lowest point
        above = target[2] + self._place_top + bottom
        release = np.array([*(target + self._offset)[:2], above + (-0.03 if self._into else 0.01)])
        high = max(above + 0.03, grasp[2]) + _CLEAR
        over, over_target = np.array([*grasp[:2], high]), np.array([*release[:2], high])
        return [
            _Phase(grasp + np.array([0.0, 0.0, _CLEAR]), False, 0.015),
            _Phase(grasp, False, 0.006),
            _Phase(grasp, True, steps=_CLOSE_STEPS),
            _Phase(over, True, 0.03, carries=True),
            _Phase(over_target, True, 0.012, carries=True),
            _Phase(release, True, 0.01, carries=True),
            _Phase(release, False, steps=_OPEN_STEPS),
            _Phase(over_target, False, 0.02),
        ]

    def action(self, raw: Raw) -> Vector:
        """``[7]`` for the present state, within +-1."""
        hand = np.asarray(raw["robot0_eef_pos"])
        while True:
            if not self._phases:
                self._phases, self._steps = self._plan(raw), 0
            phase = self._phases[0]
            if phase.carries and np.linalg.norm(_at(raw, self._object) + self._offset - hand) > 0.06:
                self._phases = []  # lost
                continue
            if self._steps < phase.steps and np.linalg.norm(phase.goal - hand) > phase.near:
                break
            self._phases.pop(0)
            self._steps = 0
        self._steps += 1
        turned = _DOWN @ to_matrix(np.asarray(raw["robot0_eef_quat"]), "quaternion_xyzw").T
        move = _GAIN * (phase.goal - hand) / _STEP_M
        turn = _GAIN * from_matrix(turned, "axis_angle") / _STEP_RAD
        return np.clip(np.concatenate([move, turn, [1.0 if phase.closed else -1.0]]), -1.0, 1.0)


def _at(raw: Raw, name: str) -> Vector:
    return np.asarray(raw[f"{name}_pos"], np.float64)
