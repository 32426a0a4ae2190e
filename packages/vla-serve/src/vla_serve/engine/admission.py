"""Whether a request that arrives can be answered before its deadline."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from vla_serve.engine.errors import Refused
from vla_serve.engine.plan import OVERHEAD_S, size_for

SLACK = 1.15
"""What is expected of several runs is less certain than of one: more than the planner asks for at a start."""


def ahead_of(session: str, queued: Mapping[str, int]) -> int:
    """Tickets that are served before the next one of ``session``, in turns."""
    own = queued.get(session, 0)
    return own + sum(min(count, own + 1) for name, count in queued.items() if name != session)


def expected_s(
    ahead: int,
    running_s: float,
    reply_s: float,
    seconds: Callable[[int], float],
    known: Sequence[int],
) -> float:
    """Seconds until the answer of one that has ``ahead`` before it, and ``running_s`` of the present run.

    ``reply_s``: from the end of a run to the client.
    """
    rates = {size: (seconds(size) + OVERHEAD_S) / size for size in known}
    # As the planner does: the size that answers most a second, as long as there are enough.
    best = min(rates, key=lambda size: rates[size])
    runs, rest = divmod(ahead, best)
    model_s = running_s + runs * (seconds(best) + OVERHEAD_S) + seconds(size_for(rest + 1, known))
    return SLACK * model_s + reply_s


def full(limit: int, wait_s: float) -> Refused:
    """The queue is full; it has moved on after ``wait_s``."""
    return Refused(f"{limit} requests are waiting for the model", "QUEUE_FULL", with_jitter(wait_s))


def too_late(expected: float, left: float) -> Refused:
    """The answer would come after the deadline; there is room for it when so much less is waiting."""
    return Refused(
        f"an answer takes {expected:.3g} s now, the deadline leaves {max(0.0, left):.3g} s",
        "TOO_LATE",
        with_jitter(expected - left),
    )


def with_jitter(seconds: float) -> float:
    """Up to half as long again, so that those refused together do not come back together."""
    return max(seconds, 0.005) * random.uniform(1.0, 1.5)
