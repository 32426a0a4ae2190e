"""Runs of the model on batches of static sizes, and what becomes of one that fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vla_core.errors import UserError

from vla_serve.engine.admission import with_jitter
from vla_serve.engine.boundary import Boundary, without_frames
from vla_serve.engine.errors import EngineError, ModelFailed, Refused
from vla_serve.engine.plan import size_for
from vla_serve.engine.policy import Policy
from vla_serve.engine.ticket import Ticket

log = logging.getLogger("vla_serve.engine")


@dataclass
class Outcome:
    """What came of a batch.

    Args:
        answered: tickets, with the actions of their run and their row in it.
        failed: tickets with what they are told.
        took: (denoise steps, size, seconds) of each run that worked.
    """

    answered: list[tuple[Ticket, Any, int]] = field(default_factory=list)
    failed: list[tuple[Ticket, Exception]] = field(default_factory=list)
    took: list[tuple[int | None, int, float]] = field(default_factory=list)


class Runner:
    """Runs batches of a policy.

    Args:
        policy: what answers.
        known: sizes that are run; a partial batch repeats its last row, and what comes out for it is dropped.
        can_shrink: whether a batch that is too large for the memory may be run in halves.
    """

    def __init__(self, policy: Policy, known: Sequence[int], can_shrink: bool) -> None:
        self._policy, self._known, self._can_shrink = policy, known, can_shrink
        self._predict_rows = getattr(policy, "predict_rows", None)

    def predict(self, prepared: list[Any], steps: int | None) -> tuple[Any, int]:
        """Actions of the rows, and those of the repetitions after them; and the size of the run."""
        size = size_for(len(prepared), self._known)
        rows = prepared + prepared[-1:] * (size - len(prepared))
        if self._predict_rows is not None and size > 1:
            return self._predict_rows(rows, steps), size
        joined = rows[0] if size == 1 else type(rows[0]).join(rows)
        return self._policy.predict(joined, steps), size

    def run(self, tickets: list[Ticket]) -> Outcome:
        """Run tickets of one kind together.

        A batch that fails is run again in halves, until the row that makes it fail is alone: one bad request
        costs nobody else's answer. One that is too large for the memory is halved once.
        """
        outcome = Outcome()
        self._run(tickets, outcome, halved=False)
        return outcome

    def _run(self, tickets: list[Ticket], outcome: Outcome, halved: bool) -> None:
        start, size = time.monotonic(), size_for(len(tickets), self._known)
        with Boundary() as model:
            actions, _ = self.predict([t.prepared for t in tickets], tickets[0].steps)
        error = model.error
        if error is not None:
            memory = _out_of_memory(error)
            again = len(tickets) > 1 and (self._can_shrink and not halved if memory else True)
            if again or memory:
                # Its rows may all be answered, and those of a run that did not fit are only refused: nobody
                # else says what happened.
                what = f"{type(error).__name__}: {error}"
                log.warning("a run of %d rows failed%s: %s", size, "; in halves" if again else "", what)
                without_frames(error)  # they hold on to what the memory is needed for
            if again:
                middle = len(tickets) // 2
                for half in (tickets[:middle], tickets[middle:]):
                    self._run(half, outcome, halved=halved or memory)
            else:
                outcome.failed += [(ticket, told(error)) for ticket in tickets]
            return
        took = time.monotonic() - start
        outcome.took.append((tickets[0].steps, size, took))
        for i, ticket in enumerate(tickets):
            ticket.started, ticket.model_s, ticket.batch = start, took, len(tickets)
            outcome.answered.append((ticket, actions, i))

    def finish(self, ticket: Ticket, actions: Any, row: int) -> None:
        """Make the chunk of what the model answered in a ``row`` of its run, and hand it over."""
        start = time.monotonic()
        with Boundary() as request:
            (chunk,) = self._policy.finish(actions[row : row + 1], [ticket.row])
            ticket.answer(chunk, time.monotonic() - start)
        if request.error is not None:
            ticket.fail(told(request.error))


def _out_of_memory(error: BaseException) -> bool:
    # torch's own is known by its name: the engine does not import torch.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def told(error: BaseException) -> Exception:
    """What those who wait are told of an error in a policy."""
    if _out_of_memory(error):
        return Refused("the model ran out of memory; try again", "OUT_OF_MEMORY", with_jitter(1.0))
    if isinstance(error, (UserError, EngineError)):
        return error
    failed = ModelFailed(str(error))
    failed.__cause__ = error
    return failed
