"""A request of the control loop that is under way, and when its answer is there."""

from __future__ import annotations

import math
from concurrent.futures import Future, wait
from dataclasses import dataclass

from vla_core.types import Observation

from vla_serve.clients.chunks import ServedChunk
from vla_serve.clients.client import Timings

Answer = tuple[ServedChunk, Timings, float]
"""A chunk, the times of its request, and the seconds until it came, those of a busy server included."""


@dataclass
class Asked:
    """A request under way; the answer is made to take over ``delay`` steps after ``step``."""

    step: int
    delay: int
    observation: Observation
    answer: Future[Answer]
    tick: int
    """Of the loop, when it asked."""
    free: bool
    """In a simulator whose time stands still for it: the first of an episode."""
    arrived_after: int | None = None
    stalled: bool = False
    """The robot waits for it, its chunk used up."""

    def there(self) -> bool:
        """By the clock."""
        return self.answer.done()

    def there_at(self, tick: int, hz: float) -> bool:
        """In a simulator's time, ``hz`` ticks a second; waits for the answer, which says how long it took."""
        wait([self.answer])
        if self.free or self.answer.exception() is not None:
            return True
        return tick >= self.tick + math.ceil(self.answer.result()[2] * hz)
