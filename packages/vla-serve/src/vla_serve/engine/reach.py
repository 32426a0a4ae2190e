"""What of a robot cannot be as it says: states far from all that a policy learned from, odd calibration.

Shapes: S state dims.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from vla_core.odd_calibration import odd_calibration
from vla_core.specs import RobotSpec
from vla_core.types import Observation

FAR = 5.0
"""Beyond its range in the data by so many times that: radians told in degrees are, a long reach is not."""
PART = 0.5
"""Nor is a small part of the numbers themselves: a gripper that stayed at 0.1 m, and now is at 0.09."""


class Reach:
    """Looks at a session's observations, and has one line for each group that is far off, and each camera."""

    def __init__(self, spec: RobotSpec) -> None:
        self._sizes = {camera.name: (camera.height, camera.width) for camera in spec.observation.cameras}
        self._calibrated = False
        known = spec.statistics.vectors.get("state")
        self._groups = spec.observation.state_slices()
        if known is None or known.dim != spec.observation.state_dim:
            self._groups = {}
            return
        self._low, self._high = known.min, known.max
        wide, large = known.max - known.min, np.maximum(np.abs(known.min), np.abs(known.max))
        # A constant dim is not scaled, and says nothing to the policy.
        margin = np.where(wide < 1e-6, np.inf, np.maximum(FAR * wide, PART * large))
        # As Python's numbers: to compare so few with arrays costs ten times as much, of each request.
        self._least, self._most = (known.min - margin).tolist(), (known.max + margin).tolist()

    def lines(self, observation: Observation) -> Iterator[str]:
        """What is to be said of an observation; of each group once, and of calibration with the first."""
        if not self._calibrated:
            self._calibrated = True
            given = {"intrinsics": observation.intrinsics or {}, "extrinsics": observation.extrinsics or {}}
            of_one = {kind: {n: value[None] for n, value in known.items()} for kind, known in given.items()}
            yield from odd_calibration(of_one, self._sizes)
        state_S = observation.state
        if not self._groups or state_S is None:
            return
        numbers = zip(self._least, state_S.tolist(), self._most, strict=True)
        beyond = [number < least or number > most for least, number, most in numbers]
        if True not in beyond:
            return
        for name, part in list(self._groups.items()):
            if True not in beyond[part]:
                continue
            del self._groups[name]
            dim = beyond.index(True, part.start)
            yield (
                f"state group '{name}' is {state_S[dim]:.4g} (dim {dim - part.start}), and the policy "
                f"learned from {self._low[dim]:.4g} to {self._high[dim]:.4g}: another unit, order or robot? "
                "Its answers may mean nothing there"
            )
