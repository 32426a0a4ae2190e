"""Which of the waiting tickets share the next run of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vla_serve.engine.ticket import Ticket

OVERHEAD_S = 0.0005
"""Of a run, beside the model: handing over between threads."""

GAIN = 1.05
"""A larger batch delays those in it, and must answer so many times as many requests a second."""

SLACK = 1.05
"""A run may take so many times what is expected: where a queue is as long as the deadline allows, all of its
requests are answered a little before it, or all a little after it."""


def sizes(max_batch: int, fixed: bool) -> tuple[int, ...]:
    """Batch sizes that are run: powers of two and the largest; ``fixed``: that alone."""
    if fixed:
        return (max_batch,)
    return (*(2**i for i in range(max_batch.bit_length()) if 2**i < max_batch), max_batch)


def size_for(rows: int, known: Sequence[int]) -> int:
    """The smallest size that holds ``rows``."""
    return next(size for size in known if size >= rows)


def in_time(ticket: Ticket, done: float) -> bool:
    """Whether an answer that is there at ``done`` is of use."""
    return ticket.deadline is None or done <= ticket.deadline


def choose(
    due: Iterable[Ticket],
    now: float,
    seconds: Callable[[int | None, int], float],
    reply_s: float,
    known: Sequence[int],
) -> tuple[list[Ticket], list[Ticket]]:
    """The tickets of the next run, and those that can't be answered in time any more.

    The next run has tickets of one kind, that of the first one due. Its size is the one that gives the most
    useful answers a second: one that is there after its deadline is of no use. ``reply_s``: from the end of a
    run to the client.
    """
    waiting: list[Ticket] = []
    late: list[Ticket] = []
    for ticket in due:
        done = now + reply_s + SLACK * seconds(ticket.steps, known[0])
        (waiting if in_time(ticket, done) else late).append(ticket)
    if not waiting:
        return [], late
    steps, kind = waiting[0].steps, waiting[0].kind
    alike = [ticket for ticket in waiting if ticket.kind == kind]
    best: list[Ticket] = []
    best_rate = 0.0
    for size in known:
        took = seconds(steps, size)
        useful = [ticket for ticket in alike if in_time(ticket, now + reply_s + SLACK * took)][:size]
        rate = len(useful) / (took + OVERHEAD_S)
        if useful and (not best or rate > GAIN * best_rate):
            best, best_rate = useful, rate
        if size >= len(alike):
            break
    return best, late
