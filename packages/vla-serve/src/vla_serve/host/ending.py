"""The end of a program that waits in its main thread, announced by a thread or a signal handler."""

from __future__ import annotations

from queue import Empty, SimpleQueue

LOOK_S = 0.5
"""A signal that comes just before the main thread falls asleep wakes nobody: the handler runs later."""


class Ending:
    """An end that is announced once and may be waited for any number of times.

    Not an event: a handler that sets one may have interrupted the very thread that holds its lock.
    """

    def __init__(self) -> None:
        self._announced: SimpleQueue[None] = SimpleQueue()

    def announce(self) -> None:
        """End every wait; safe in a signal handler."""
        self._announced.put(None)

    def wait(self) -> None:
        """Return when it is announced."""
        while True:
            try:
                self._announced.get(timeout=LOOK_S)
            except Empty:
                continue
            self._announced.put(None)  # for who waits next
            return
