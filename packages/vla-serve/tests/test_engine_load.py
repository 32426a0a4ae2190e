"""The offered-load table of docs/reliability.md in simulated time: more requests than can be answered.

The desk (queue, admission, turns, batches, estimates) is the engine's own, its clock and the model's runs are
simulated, so that no figure here depends on the machine.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count

import pytest
from vla_core.testing import make_observation, make_spec
from vla_serve.engine import desk as desk_module
from vla_serve.engine import estimates as estimates_module
from vla_serve.engine.desk import Desk
from vla_serve.engine.errors import Refused
from vla_serve.engine.plan import size_for, sizes
from vla_serve.engine.policy import Row
from vla_serve.engine.ticket import Ticket

ROW = Row(make_observation(make_spec(1)), 0)
Then = Callable[[float], None]
REPLY_S = 0.002
"""From the end of a run to the client."""


class Idle(Exception):
    """A thread that prepares would wait now."""


class NoThreads:
    """In the place of the condition on which those threads wait."""

    def notify(self, number: int = 1) -> None:
        pass

    notify_all = notify

    def wait(self) -> None:
        raise Idle


class Simulation:
    """Events in the order of their time, a desk, and a model that takes ``seconds(rows)`` for a run."""

    def __init__(self, monkeypatch, seconds: Callable[[int], float], max_batch: int) -> None:
        self.now = 100.0
        for module in (desk_module, estimates_module):
            monkeypatch.setattr(module, "time", self)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers, self._random = count(), random.Random(5)
        random.seed(5)  # the jitter of the times to come back
        self._seconds, self._busy = seconds, False
        self._known = sizes(max_batch, fixed=False)
        self.desk = Desk(64, self._known, 0.0)
        self.desk._for_workers = NoThreads()
        for size in self._known:  # the warm-up
            for _ in range(3):
                self.desk.estimates.record(None, size, self._took(size))
        self.in_time: Counter[str] = Counter()
        self.rows_run = 0

    def monotonic(self) -> float:
        return self.now

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = end

    def ask(
        self, session: str, timeout_s: float, then: Callable[[float], None] = lambda wait_s: None
    ) -> None:
        """A request; ``then`` is told how many seconds after its answer, or refusal, to go on."""
        deadline = self.now + timeout_s

        def make(depth: int) -> Ticket:
            return Ticket(session, lambda: ROW, None, deadline, depth)

        try:
            ticket, _, _ = self.desk.arrive(make, supersedes=False)
        except Refused as refused:
            then(refused.retry_after_s)
            return
        ticket.over = then
        ticket.row = ROW
        self._prepare()
        self._start()

    def _prepare(self) -> None:
        with suppress(Idle):
            while job := self.desk.next_job(lambda ticket: self.desk.prepared(ticket, good=True)):
                job()

    def _took(self, rows: int) -> float:
        return self._seconds(rows) * self._random.uniform(0.97, 1.05)

    def _start(self) -> None:
        while not self._busy and len(self.desk._ready):
            chosen = self.desk.next_batch()
            assert chosen is not None
            batch, late = chosen
            self._prepare()
            for ticket in late:
                ticket.fail(TimeoutError())
                ticket.over(0.0)
            if batch:
                self._busy = True
                size = size_for(len(batch), self._known)
                took = self._took(size)
                self.at(self.now + took, partial(self._ran, batch, size, took))

    def _ran(self, batch: list[Ticket], size: int, took: float) -> None:
        self._busy = False
        self.rows_run += len(batch)
        self.desk.ran([(None, size, took)])
        for ticket in batch:
            self.desk.replied(REPLY_S)
            useful = ticket.deadline is not None and self.now + REPLY_S <= ticket.deadline
            self.in_time[ticket.session] += useful
            ticket.future.set_result(None)
            ticket.over(REPLY_S)
        self._start()


def closed_loop(simulation: Simulation, clients: int, timeout_s: float) -> None:
    """Clients that ask again as soon as they have an answer, or when they are told to come back."""

    def drive(name: str) -> None:
        simulation.ask(name, timeout_s, lambda wait_s: again(simulation.now + wait_s, name))

    def again(when: float, name: str) -> None:
        simulation.at(when, lambda: drive(name))

    for number in range(clients):
        again(simulation.now + 0.001 * number, f"{number}")


@pytest.mark.parametrize(("clients", "model_s", "timeout_s"), [(16, 1.0, 10.0), (6, 0.2, 1.0), (4, 0.2, 1.0)])
def test_closed_loops_that_collapsed_first_in_first_out(monkeypatch, clients, model_s, timeout_s):
    """16 clients got 9 answers in 45 s and 55 runs were wasted; 6 clients got 4 answers in 15 s."""
    simulation = Simulation(monkeypatch, lambda rows: model_s, max_batch=1)
    closed_loop(simulation, clients, timeout_s)
    simulation.run(45 * model_s)
    answers = sum(simulation.in_time.values())
    assert answers >= 0.95 * 45
    assert answers == simulation.rows_run  # no run for nothing


@pytest.mark.parametrize("factor", [1.0, 1.2, 2.0, 10.0])
def test_answers_in_time_at_any_load(monkeypatch, factor):
    seconds = {1: 0.13, 2: 0.14, 4: 0.16, 8: 0.2}
    simulation = Simulation(monkeypatch, seconds.__getitem__, max_batch=8)
    capacity, timing, lasts = 8 / seconds[8], random.Random(7), 60.0
    when = simulation.now
    for number in range(int(factor * capacity * lasts)):
        when += timing.expovariate(factor * capacity)
        simulation.at(when, lambda name=f"{number % 40}": simulation.ask(name, 1.0))
    simulation.run(lasts)
    answers = sum(simulation.in_time.values())
    assert answers >= 0.95 * capacity * lasts
    assert answers == simulation.rows_run


def test_a_robot_beside_a_session_that_fills_the_queue_gets_every_second_run(monkeypatch):
    """First in, first out gave it no answer in 20 s."""
    simulation = Simulation(monkeypatch, lambda rows: 0.05, max_batch=1)

    def flood(wait_s: float = 0.0) -> None:
        simulation.at(simulation.now + wait_s, lambda: simulation.ask("flood", 30.0, flood))

    for _ in range(60):
        flood()
    closed_loop(simulation, 1, 1.0)
    simulation.run(20.0)
    assert simulation.in_time["0"] >= 0.45 * 20 / 0.05
    assert simulation.in_time["flood"] >= 0.45 * 20 / 0.05
