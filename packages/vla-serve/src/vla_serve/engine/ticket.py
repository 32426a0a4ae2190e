"""One request on its way through the engine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from vla_core.types import ActionChunk

from vla_serve.engine.policy import Row


@dataclass(frozen=True)
class Answer:
    """A chunk, the row it answers, and where the time went, in milliseconds.

    ``batch``: rows answered in the same run; ``depth``: requests that waited when this one came.
    On the monotonic clock: ``began``: when its decoding did; ``ran_at``: when the run was over; ``done_at``:
    when it was finished.
    """

    chunk: ActionChunk
    row: Row
    queue_ms: float
    decode_ms: float
    prepare_ms: float
    model_ms: float
    finish_ms: float
    batch: int
    depth: int
    began: float
    ran_at: float
    done_at: float


@dataclass(eq=False)
class Ticket:
    """A request and what has become of it.

    Args:
        session: whose turn it takes.
        make_row: decodes and checks it; called in a thread of the engine or where it comes in, if at all.
        steps: denoise steps, for what the run will cost.
        deadline: on the monotonic clock, or None.
        depth: requests that waited when it came.
        step: control step of the session's episode, or None.
        alike: what takes about as long to prepare has the same; None: nobody knows.
    """

    session: str
    make_row: Callable[[], Row]
    steps: int | None
    deadline: float | None
    depth: int
    step: int | None = None
    alike: Hashable = None
    arrived: float = field(default_factory=time.monotonic)
    future: Future[Answer] = field(default_factory=Future)
    row: Row | None = None
    prepared: Any = None
    began: float = 0.0
    decode_s: float = 0.0
    prepare_s: float = 0.0
    started: float = 0.0
    model_s: float = 0.0
    batch: int = 0

    @property
    def kind(self) -> Hashable:
        """Tickets of one kind can share a run."""
        return None if self.row is None else self.row.kind

    def prepare(self, prepare: Callable[[list[Row]], Any]) -> None:
        """Decode the request and make the model's input of it."""
        self.began = time.monotonic()
        self.row = self.make_row()
        decoded = time.monotonic()
        self.prepared = prepare([self.row])
        self.decode_s, self.prepare_s = decoded - self.began, time.monotonic() - decoded

    def answer(self, chunk: ActionChunk, finish_s: float) -> None:
        """Give the chunk to whoever waits for it."""
        assert self.row is not None
        queue_s = max(0.0, self.started - self.arrived - self.decode_s - self.prepare_s)
        answer = Answer(
            chunk,
            self.row,
            queue_ms=1000 * queue_s,
            decode_ms=1000 * self.decode_s,
            prepare_ms=1000 * self.prepare_s,
            model_ms=1000 * self.model_s,
            finish_ms=1000 * finish_s,
            batch=self.batch,
            depth=self.depth,
            began=self.began,
            ran_at=self.started + self.model_s,
            done_at=time.monotonic(),
        )
        self.prepared = None
        with contextlib.suppress(InvalidStateError):  # the engine failed meanwhile, and has said so
            self.future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits; nobody may, after a cancellation."""
        self.prepared = None
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)
