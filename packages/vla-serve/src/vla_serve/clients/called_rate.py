"""How often a control loop is called, against the contract: at another rate steps are other motions."""

from __future__ import annotations

import logging
from collections import deque
from statistics import median

log = logging.getLogger("vla_serve.clients.control_loop")

CALLS = 40
"""So many calls are looked at: half of them may be late for any reason."""
OFF = 0.25
"""A robot's own clock may be off by less."""


class CalledRate:
    """Says once, if so, that calls come at another rate than ``control_hz``."""

    def __init__(self, control_hz: float) -> None:
        self._hz, self._last, self._said = control_hz, 0.0, False
        self._between: deque[float] = deque(maxlen=CALLS)

    def begin(self) -> None:
        """A new episode, before which time may have passed."""
        self.hold()
        self._between.clear()

    def hold(self) -> None:
        """This control step waits for the policy: until the next call is not the caller's own time."""
        self._last = 0.0

    def call(self, now: float) -> None:
        """A control step begins at ``now``, in seconds above 0."""
        if self._said:
            return
        if self._last:
            self._between.append(now - self._last)
        self._last = now
        if len(self._between) < CALLS:
            return
        ratio = median(self._between) * self._hz
        self._between.clear()
        if not 1 - OFF <= ratio <= 1 + OFF:
            self._said = True
            came = f"{self._hz / ratio:.3g} Hz" if ratio > 0 else "all at once"
            log.warning(
                "control steps come at %s, and the policy's are of %g Hz: the robot moves %.3g times as fast "
                "as it was taught; call act() at that rate, or give delay_steps for a simulator whose time "
                "stands still",
                came,
                self._hz,
                1 / max(ratio, 1e-9),
            )
