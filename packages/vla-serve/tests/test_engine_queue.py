"""Turns of sessions, whatever was pushed, taken and given up before."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from vla_serve.engine.fair_queue import FairQueue
from vla_serve.engine.ticket import Ticket


@given(st.lists(st.sampled_from(["push a", "push b", "push c", "take", "give up"])))
def test_the_first_is_the_first_of_all_and_nobody_is_served_twice_while_another_waits(does):
    queue, served = FairQueue(), []
    for what in does:
        waiting = list(queue)
        assert queue.first() is (waiting[0] if waiting else None)
        assert len(queue) == len(waiting) == sum(queue.lengths().values())
        if what.startswith("push"):
            queue.push(Ticket(what[-1], lambda: None, None, None, 0))
        elif what == "give up" and waiting:
            assert queue.discard(waiting[-1])
            assert not queue.discard(waiting[-1])
        elif waiting:
            queue.take(waiting[0])
            served.append((waiting[0].session, {ticket.session for ticket in waiting}))
    for (session, _), (then, others) in pairwise(served):
        assert session != then or others == {session}
    assert Counter(ticket.session for ticket in queue) == Counter(queue.lengths())
