"""Requests that are so quick to prepare that to hand them to another thread would take longer."""

from __future__ import annotations

import threading
from collections.abc import Hashable

LIMIT_S = 0.002
"""Whoever submits a request may be kept so long: a server's event loop, which reads all others meanwhile."""

REMEMBERED = 256
"""Kinds of requests whose latest time is known; one that is forgotten is taken for new."""


class Quick:
    """Which requests are, by what the latest one of their kind took. Thread-safe."""

    def __init__(self) -> None:
        self._latest: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    def __contains__(self, alike: Hashable) -> bool:
        """Whether a request of this kind is known to be; None: it has no kind."""
        with self._lock:
            return self._latest.get(alike, LIMIT_S) < LIMIT_S

    def took(self, alike: Hashable, seconds: float) -> None:
        """Note what decoding and preparing one took."""
        if alike is None:
            return
        with self._lock:
            self._latest.pop(alike, None)
            self._latest[alike] = seconds
            if len(self._latest) > REMEMBERED:
                del self._latest[next(iter(self._latest))]
