"""What waits in the engine, and who is next: for a thread that prepares, and for the model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from weakref import ref

from vla_serve.engine import admission
from vla_serve.engine.errors import NotServing
from vla_serve.engine.estimates import Estimates
from vla_serve.engine.fair_queue import FairQueue
from vla_serve.engine.plan import choose, size_for
from vla_serve.engine.ticket import Ticket

Job = Callable[[], None]


class Desk:
    """Tickets from their arrival to the model, and jobs for the threads beside it. Thread-safe.

    Args:
        max_queue: most tickets that wait while others run.
        known: batch sizes of the model.
        batch_wait_s: a run that is not full waits so long for more rows.
    """

    def __init__(self, max_queue: int, known: Sequence[int], batch_wait_s: float) -> None:
        self.max_queue, self._known, self._batch_wait_s = max_queue, known, batch_wait_s
        self.estimates = Estimates()
        self._lock = threading.Lock()
        self._for_workers = threading.Condition(self._lock)
        self._for_model = threading.Condition(self._lock)
        self._changed = threading.Condition(self._lock)
        self._incoming, self._ready = FairQueue(), FairQueue()
        self._preparing = 0
        self._jobs: deque[Job] = deque()
        self._open: set[Ticket] = set()
        self._running: list[Ticket] = []
        self._running_since = 0.0
        self._closed: str | None = None
        self._ended: str | None = None

    @property
    def pending(self) -> int:
        """Tickets that wait or run."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Tickets that wait."""
        return len(self._incoming) + self._preparing + len(self._ready)

    @property
    def ended(self) -> str | None:
        """Why nothing is answered any more."""
        return self._ended

    @property
    def running_s(self) -> float:
        """Seconds since the present run began; 0 when there is none."""
        with self._lock:
            return time.monotonic() - self._running_since if self._running else 0.0

    @property
    def soonest_s(self) -> float:
        """Seconds until an answer to a request of now, if it were the next of all; never too much."""
        with self._lock:
            if self._idle_for_long():
                return 0.0
            return self._left_of_run(time.monotonic()) + self.estimates.least_s

    def soonest_of(self, session: str) -> float:
        """Seconds until an answer to a request of a session, of any kind, if it came now."""
        with self._lock:
            if self._idle_for_long():
                return 0.0
            return self._expected_s(session, time.monotonic(), self.estimates.least)

    def close(self, reason: str) -> None:
        """Take nothing new."""
        with self._lock:
            self._closed = self._closed or reason

    def end(self, reason: str) -> list[Ticket] | None:
        """Let all threads go; what was open, or None when it had ended before."""
        with self._lock:
            if self._ended is not None:
                return None
            self._ended = reason
            for condition in (self._for_workers, self._for_model, self._changed):
                condition.notify_all()
            return list(self._open)

    def wait_empty(self, timeout_s: float) -> bool:
        """Whether all is answered within ``timeout_s``."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._open or self._ended is not None, timeout_s)

    # Arrival

    def arrive(
        self, make: Callable[[int], Ticket], supersedes: bool, quick: bool = False
    ) -> tuple[Ticket, list[Ticket], bool]:
        """Take a ticket, made of the number of those that wait; and those that it takes the place of.

        And whether the caller is to prepare it: a ``quick`` one that finds nobody waiting, nothing running.

        Raises:
            Refused: the queue is full, or the answer would come too late.
            NotServing: nothing is taken any more.
        """
        with self._lock:
            closed = self._ended or self._closed
            if closed is not None:
                raise NotServing(closed)
            ticket = make(self.waiting)
            older = []
            if supersedes:
                older = [*self._incoming.of(ticket.session), *self._ready.of(ticket.session)]
                for other in older:
                    self._drop(other)
            self._admit(ticket)
            self._open.add(ticket)
            alone = quick and not self.waiting and not self._running
            self._incoming.push(ticket)
            if alone:
                self._begin(ticket)
            else:
                self._for_workers.notify()
        # The future is the ticket's own: held by it, a ticket and its pictures would stay when all is done,
        # until the garbage collector comes, which counts objects and no bytes.
        weak = ref(ticket)
        ticket.future.add_done_callback(lambda _: self._over(weak()))
        return ticket, older, alone

    def drop_until(self, session: str, step: int) -> list[Ticket]:
        """Take out what a session asked at ``step`` or before, and still waits."""
        with self._lock:
            waiting = [*self._incoming.of(session), *self._ready.of(session)]
            past = [ticket for ticket in waiting if ticket.step is not None and ticket.step <= step]
            for ticket in past:
                self._drop(ticket)
            return past

    def _admit(self, ticket: Ticket) -> None:
        now, seconds = time.monotonic(), partial(self.estimates.seconds, ticket.steps)
        left = self._left_of_run(now)
        if self.waiting >= self.max_queue + (0 if self._running else 1):
            rows = min(max(1, self.waiting), self._known[-1])
            raise admission.full(self.max_queue, left + seconds(size_for(rows, self._known)))
        if ticket.deadline is None or self._idle_for_long():
            return
        expected = self._expected_s(ticket.session, now, seconds)
        if now + expected > ticket.deadline:
            raise admission.too_late(expected, ticket.deadline - now)

    def _expected_s(self, session: str, now: float, seconds: Callable[[int], float]) -> float:
        queued = self._incoming.lengths()
        for name, count in self._ready.lengths().items():
            queued[name] = queued.get(name, 0) + count
        ahead = admission.ahead_of(session, queued) + self._preparing
        left = self._left_of_run(now)
        return admission.expected_s(ahead, left, self.estimates.reply_s, seconds, self._known)

    def _idle_for_long(self) -> bool:
        return not self.waiting and not self._running and self.estimates.stale

    def _left_of_run(self, now: float) -> float:
        if not self._running:
            return 0.0
        size = size_for(len(self._running), self._known)
        took = self.estimates.seconds(self._running[0].steps, size)
        return max(0.0, self._running_since + took - now)

    def _drop(self, ticket: Ticket) -> None:
        self._incoming.discard(ticket)
        self._ready.discard(ticket)

    def _over(self, ticket: Ticket | None) -> None:
        assert ticket is not None  # it is among the open ones
        with self._lock:
            self._drop(ticket)
            self._open.discard(ticket)
            self._changed.notify_all()
            if len(self._incoming):
                self._for_workers.notify()

    # Threads that prepare and finish

    def add_jobs(self, jobs: Sequence[Job]) -> None:
        """Work that goes before preparing: somebody's answer."""
        with self._lock:
            self._jobs.extend(jobs)
            self._for_workers.notify(len(jobs))

    def next_job(self, prepare: Callable[[Ticket], None]) -> Job | None:
        """What to do next; waits for it. None: it is over."""
        # Not too far ahead: what is prepared takes memory, and its turn may be a long way off. But one of
        # each session, so that a line of another session's keeps nobody from the model.
        ahead = 3 * self._known[-1]
        with self._lock:
            while self._ended is None:
                if self._jobs:
                    return self._jobs.popleft()
                ticket = self._incoming.first()
                if ticket is not None and (
                    len(self._ready) + self._preparing < ahead or not self._ready.of(ticket.session)
                ):
                    self._begin(ticket)
                    return partial(prepare, ticket)
                self._for_workers.wait()
            return None

    def _begin(self, ticket: Ticket) -> None:
        self._incoming.take(ticket)
        self._preparing += 1

    def prepared(self, ticket: Ticket, good: bool) -> None:
        """A ticket was prepared, and can wait for the model if that was ``good``."""
        with self._lock:
            self._preparing -= 1
            if good and not ticket.future.cancelled() and self._ended is None:
                self._ready.push(ticket)
                self._for_model.notify()

    # The model's thread

    def next_batch(self) -> tuple[list[Ticket], list[Ticket]] | None:
        """Tickets of the next run, and those that can't be answered in time any more; None: it is over."""
        with self._lock:
            while self._ended is None and (not len(self._ready) or self._patient()):
                self._for_model.wait(self._batch_wait_s or None)
            if self._ended is not None:
                return None
            now = time.monotonic()
            batch, late = choose(
                self._ready, now, self.estimates.seconds, self.estimates.reply_s, self._known
            )
            if not batch and len(late) == self.waiting and self.estimates.stale:
                batch, late = late[:1], late[1:]  # nobody else waits: see how long it really takes
            for ticket in late:
                self._ready.discard(ticket)
            for ticket in batch:
                self._ready.take(ticket)
            batch = [ticket for ticket in batch if ticket.future.set_running_or_notify_cancel()]
            self._running, self._running_since = batch, now
            if len(
                self._incoming
            ):  # there is room now to prepare more; to wake them for nothing costs the model
                self._for_workers.notify_all()
            return batch, late

    def _patient(self) -> bool:
        """Whether a run that is not full waits for more rows, as the operator wished."""
        if not self._batch_wait_s or len(self._ready) >= self._known[-1]:
            return False
        first = min(ticket.arrived for ticket in self._ready)
        return time.monotonic() - first < self._batch_wait_s

    def replied(self, seconds: float) -> None:
        """An answer left so long after its run."""
        with self._lock:
            self.estimates.replied(seconds)

    def ran(self, took: Sequence[tuple[int | None, int, float]]) -> None:
        """The run is over; (denoise steps, size, seconds) of each part of it."""
        with self._lock:
            self._running = []
            for steps, size, seconds in took:
                self.estimates.record(steps, size, seconds)
