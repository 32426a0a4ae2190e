"""Requests of many sessions to one model: prepared in threads, run in batches, finished in threads."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial

from vla_serve.engine.boundary import Boundary, raise_again
from vla_serve.engine.desk import Desk
from vla_serve.engine.errors import DeadlinePassed, NotServing, Superseded
from vla_serve.engine.plan import sizes
from vla_serve.engine.policy import ActingPolicy, Policy, Row, RowByRow, as_policy
from vla_serve.engine.quick import Quick
from vla_serve.engine.runner import Runner, told
from vla_serve.engine.ticket import Answer, Ticket
from vla_serve.engine.warm_up import OnWarm, warm_up

log = logging.getLogger("vla_serve.engine")

TICK_S = 0.25


class Engine:
    """Runs a policy. :meth:`start` it, :meth:`submit` requests, :meth:`close` it.

    A request is decoded and prepared in one of some threads, or where it is submitted if that is quick and
    nobody waits; it waits for its turn (round robin over sessions), runs in a batch with others of its kind,
    and is finished in one of those threads again. What cannot be answered before its deadline, by what runs
    were measured to take, is refused as soon as that is known. One that was cancelled is never run.

    Args:
        policy: what answers.
        own_steps: denoise steps that it takes where nobody says how many, if known: see :meth:`steps`.
        max_queue: most requests that wait while others run.
        max_batch: most rows of a run; 1 for an :class:`ActingPolicy`.
        batch_wait_s: a run that is not full waits so long for more rows.
        deterministic: all runs have one shape, so that a row's answer is bit by bit what it is alone.
        threads: that prepare and finish; None: by the number of cores.
        model_timeout_s: a run that takes longer is taken for hung.
        on_thread: called first in each thread with its kind, ``prepare`` or ``model``; with
            ``prepare`` also in one that submits, before a request is prepared there.
        on_failure: told why the engine will answer nothing any more.
    """

    def __init__(
        self,
        policy: Policy | ActingPolicy,
        *,
        own_steps: int | None = None,
        max_queue: int = 64,
        max_batch: int = 8,
        batch_wait_s: float = 0.0,
        deterministic: bool = False,
        threads: int | None = None,
        model_timeout_s: float = 60.0,
        on_thread: Callable[[str], None] | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self.policy = as_policy(policy)
        self._own_steps, self.max_queue = own_steps, max_queue
        self.max_batch = 1 if isinstance(self.policy, RowByRow) else max_batch
        self._horizon = max(spec.action.horizon for spec in self.policy.specs.values())
        self._sizes = sizes(self.max_batch, deterministic)
        self._timeout_s = model_timeout_s
        self._on_thread, self._on_failure = on_thread, on_failure
        self._runner = Runner(self.policy, self._sizes, can_shrink=not deterministic)
        self._desk, self._quick = Desk(max_queue, self._sizes, batch_wait_s), Quick()
        self._caller = threading.local()
        self._first: Callable[[], None] = lambda: None
        self._started: Future[None] = Future()
        count = threads or max(2, min(4, os.cpu_count() or 2))
        self._threads = [
            threading.Thread(target=self._guard, args=(kind, loop), name=f"vla-{kind}-{i}", daemon=True)
            for kind, loop, n in (("prepare", self._work, count), ("model", self._model, 1))
            for i in range(n)
        ]
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._watch_model, name="vla-watch", daemon=True)

    def start(self, steps: int | None = None, on_warm: OnWarm | None = None) -> None:
        """Warm the policy up in the model's thread, and begin.

        Args:
            steps: denoise steps to warm up with.
            on_warm: called in that thread with a function that runs one row, to measure and choose settings.

        Raises:
            Exception: whatever the policy raised.
        """
        self._first = partial(self._warm, self._started, self.steps(steps), on_warm)
        for thread in (*self._threads, self._watch):
            thread.start()
        self._started.result()

    def _warm(self, done: Future[None], steps: int | None, on_warm: OnWarm | None) -> None:
        with Boundary(exits=True) as warming:
            warm_up(self.policy, self._runner, self._sizes, self._desk.estimates, steps, on_warm)
        if warming.error is None:
            done.set_result(None)
        else:
            self._fail("the warm-up failed", quiet=True)
            done.set_exception(warming.error)  # raised again where the start waits

    def steps(self, wanted: int | None) -> int | None:
        """Denoise steps as the policy is asked for them: None also for its own number.

        Who names that shares runs, and on a GPU graphs, with those who name none.
        """
        return None if wanted == self._own_steps else wanted

    def submit(
        self,
        session: str,
        make_row: Callable[[], Row],
        *,
        steps: int | None = None,
        deadline: float | None = None,
        step: int | None = None,
        supersedes: bool = False,
        alike: Hashable = None,
    ) -> Future[Answer]:
        """Queue a request; cancelling the future takes it off the queue.

        Args:
            session: whose it is.
            make_row: called in a thread of the engine, or here; what it raises the future raises.
            steps: denoise steps.
            deadline: on the monotonic clock.
            step: control step of the session's episode; see :meth:`drop_past`.
            supersedes: drop what of the session still waits.
            alike: names requests that take about as long to prepare as each other. Where the latest of them
                was quick, and nobody waits, this one is prepared before the call returns.

        Raises:
            Refused: the queue is full, or the answer would come too late.
            NotServing: the engine is stopping, or has failed.
        """
        make = partial(Ticket, session, make_row, steps, deadline, step=step, alike=alike)
        ticket, older, alone = self._desk.arrive(make, supersedes, alike in self._quick)
        for dropped in older:
            dropped.fail(Superseded())
        if alone:
            with Boundary(exits=True) as caller:
                self._tell_caller()
                self._prepare(ticket)
            if caller.error is not None:  # what would end a thread ends one of ours, and with it the engine
                self._desk.add_jobs([partial(raise_again, caller.error)])
        return ticket.future

    def _tell_caller(self) -> None:
        # The caller's thread prepares now, and is told so as ours are.
        if self._on_thread is not None and not getattr(self._caller, "told", False):
            self._caller.told = True
            self._on_thread("prepare")

    @property
    def soonest_s(self) -> float:
        """Seconds that an answer takes at least, as things stand."""
        return self._desk.soonest_s

    def soonest_of(self, session: str) -> float:
        """The same for the next request of a session, behind what waits."""
        return self._desk.soonest_of(session)

    def drop_past(self, session: str, step: int) -> None:
        """A session's robot is at ``step``: what asks for earlier steps alone, and waits, is dropped."""
        for dropped in self._desk.drop_until(session, step - self._horizon):
            dropped.fail(Superseded())

    def replied(self, answer: Answer) -> None:
        """The front has sent an answer: how long that takes is reckoned with."""
        self._desk.replied(time.monotonic() - answer.ran_at)

    def drain(self, timeout_s: float = 0.0) -> bool:
        """Take nothing new; whether all that was taken is answered within ``timeout_s``."""
        self._desk.close("the server is shutting down")
        return self.wait_empty(timeout_s)

    def wait_empty(self, timeout_s: float) -> bool:
        """Whether all that was taken is answered within ``timeout_s``."""
        return self._desk.wait_empty(timeout_s)

    def close(self) -> None:
        """End. What is still open fails."""
        self._fail("the server stopped", quiet=True)
        for thread in (*self._threads, self._watch):
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(1.0)  # a hung one is left behind: it ends with the process

    @property
    def ended(self) -> str | None:
        """Why nothing is answered any more; None: it is."""
        return self._desk.ended

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return self._desk.pending

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._desk.waiting

    # Threads

    def _guard(self, kind: str, loop: Callable[[], None]) -> None:
        """Run a thread's loop; one that ends otherwise than by :meth:`close` ends the engine."""
        with Boundary(exits=True) as thread:
            if self._on_thread is not None:
                self._on_thread(kind)
            loop()
        if thread.error is not None:
            log.critical("the %s thread died", kind, exc_info=thread.error)
            self._fail(f"the {kind} thread died ({type(thread.error).__name__})")
            if kind == "model" and not self._started.done():
                self._started.set_exception(thread.error)  # before the warm-up: the start still waits

    def _work(self) -> None:
        while (job := self._desk.next_job(self._prepare)) is not None:
            job()
            del job  # with its pictures, not when the next one comes

    def _prepare(self, ticket: Ticket) -> None:
        good = False
        with Boundary() as request:
            if not ticket.future.cancelled():
                ticket.prepare(self.policy.prepare)
                good = True
                self._quick.took(ticket.alike, ticket.decode_s + ticket.prepare_s)
        if request.error is not None:
            ticket.fail(told(request.error))
        self._desk.prepared(ticket, good)

    def _model(self) -> None:
        self._first()
        while (chosen := self._desk.next_batch()) is not None:
            batch, late = chosen
            for ticket in late:
                ticket.fail(DeadlinePassed())
            if batch:
                self._run(batch)
            del chosen, batch, late  # with their pictures, not when the next ones come

    def _run(self, batch: list[Ticket]) -> None:
        # What a run leaves is held by those who finish it alone: to free a tensor gives up the interpreter's
        # lock, too.
        outcome = self._runner.run(batch)
        jobs = [partial(self._runner.finish, *answer) for answer in outcome.answered]
        if len(jobs) == 1 and not self._desk.waiting:
            jobs.pop()()  # nobody waits for the model: to hand it over would take longer than to do it
        self._desk.ran(outcome.took)
        self._desk.add_jobs(jobs)
        for ticket, error in outcome.failed:
            ticket.fail(error)

    def _watch_model(self) -> None:
        while not self._over.wait(TICK_S):
            if self._desk.running_s > self._timeout_s:
                self._fail(f"the model has not answered for {self._timeout_s:g} s")

    def _fail(self, reason: str, quiet: bool = False) -> None:
        left = self._desk.end(reason)
        if left is None:
            return
        self._over.set()
        for ticket in left:
            ticket.fail(NotServing(reason))
        if not quiet:
            log.critical("not serving any more: %s", reason)
            if self._on_failure is not None:
                self._on_failure(reason)
