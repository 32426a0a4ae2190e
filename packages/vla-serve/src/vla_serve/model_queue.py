"""A bounded queue in front of the one thread that runs the model, in order of arrival."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from vla_core.types import ActionChunk

from vla_serve.policy_protocol import Policy, Row, act
from vla_serve.status import exhausted


class DeadlinePassed(Exception):
    """The request's deadline passed before the model could start on it."""


@dataclass(frozen=True)
class Answer:
    """A chunk, and the milliseconds it waited and took."""

    chunk: ActionChunk
    queue_ms: float
    model_ms: float


class ModelQueue:
    """Runs a policy in its own thread.

    Args:
        policy: called from that thread alone.
        limit: most requests that wait while another one runs.
    """

    def __init__(self, policy: Policy, limit: int) -> None:
        self._policy, self.limit = policy, limit
        self._pending = 0
        self._lock = threading.Lock()
        self._mean_s = 0.0
        # One worker: CUDA graphs and caches belong to a thread, and order is the order of arrival.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="vla-model")

    def submit(self, row: Row, deadline: float | None) -> Future[Answer]:
        """Queue a request. ``deadline`` is on the monotonic clock; cancelling the future unqueues it.

        The future raises :class:`DeadlinePassed` or whatever the policy raised. A full queue is
        RESOURCE_EXHAUSTED, with the time until it has probably moved on.
        """
        with self._lock:
            if self._pending > self.limit:
                raise exhausted(
                    f"{self.limit} requests are waiting for the model", "QUEUE_FULL", max(self._mean_s, 0.01)
                )
            self._pending += 1
        future = self._worker.submit(self._run, row, deadline, time.monotonic())
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Answer]) -> None:
        with self._lock:
            self._pending -= 1

    def _run(self, row: Row, deadline: float | None, queued: float) -> Answer:
        start = time.monotonic()
        if deadline is not None and start > deadline:
            raise DeadlinePassed
        chunk = act(self._policy, row)
        took = time.monotonic() - start
        self._mean_s = took if self._mean_s == 0 else 0.9 * self._mean_s + 0.1 * took
        return Answer(chunk, (start - queued) * 1000, took * 1000)

    def close(self) -> None:
        """Finish what was queued and end the thread."""
        self._worker.shutdown()
