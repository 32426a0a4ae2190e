"""How long a run of the model takes, by what it was measured to take."""

from __future__ import annotations

import time
from collections import deque

REMEMBERED = 15
QUANTILE = 0.75
"""Of the remembered runs: an answer that is promised should be there in time more often than not."""

LINK_S = 0.005
"""For the ways from and to the client, which are not measured."""

PROBE_S = 2.0
"""After so long without a run nobody is refused for what an old one took."""


class Estimates:
    """Seconds of a run, by denoise steps and batch size. Not thread-safe: its owner has a lock."""

    def __init__(self) -> None:
        self._runs: dict[tuple[int | None, int], deque[float]] = {}
        self._typical: dict[tuple[int | None, int], float] = {}
        self._latest = -PROBE_S
        self._replies: deque[float] = deque(maxlen=4 * REMEMBERED)
        self.reply_s = LINK_S
        """From the end of a run to the client: finishing, encoding, sending."""

    def replied(self, seconds: float) -> None:
        """Note how long after its run an answer left."""
        self._replies.append(seconds)
        self.reply_s = LINK_S + sorted(self._replies)[int(0.9 * (len(self._replies) - 1))]

    def record(self, steps: int | None, size: int, seconds: float) -> None:
        """Note a run."""
        runs = self._runs.setdefault((steps, size), deque(maxlen=REMEMBERED))
        runs.append(seconds)
        self._typical[steps, size] = sorted(runs)[int(QUANTILE * (len(runs) - 1))]
        self._latest = time.monotonic()

    def seconds(self, steps: int | None, size: int) -> float:
        """What a run is expected to take; 0 when nothing of the like was measured."""
        known = self._typical.get((steps, size))
        if known is not None:
            return known
        # The nearest that is known, rather than nothing: the same size first.
        alike = self._near(steps, size)
        if alike is None:
            return min((value for (own, _), value in self._typical.items() if own == steps), default=0.0)
        # A smaller run of as many steps may be known better, and takes no longer.
        smaller = {other for _, other in self._typical if other < size}
        return max(alike, *(self._near(steps, other) or 0.0 for other in smaller), 0.0)

    def _near(self, steps: int | None, size: int) -> float | None:
        """A run of a size by the nearest number of denoise steps; None: that size is unknown.

        Never more than it will take, as far as that can be told: what is refused is never measured. But a
        number of steps near one that was slow is not taken for a quick one.
        """
        known = {own: value for (own, other), value in self._typical.items() if other == size}
        least = min(known.values(), default=None)
        counts = [own for own in known if own is not None]
        if steps is None or least is None or not counts:
            return least
        nearest = min(counts, key=lambda own: abs(own - steps))
        return max(least, known[nearest] * min(1.0, steps / nearest))

    @property
    def least_s(self) -> float:
        """Of the shortest kind of run that was measured; 0 when none was."""
        return min(self._typical.values(), default=0.0)

    def least(self, size: int) -> float:
        """Of a run of a size, whatever its denoise steps: never more than :meth:`seconds`."""
        return min((value for (_, own), value in self._typical.items() if own == size), default=self.least_s)

    @property
    def stale(self) -> bool:
        """The latest run is long over."""
        return time.monotonic() - self._latest > PROBE_S
