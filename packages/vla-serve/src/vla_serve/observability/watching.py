"""What looks on while a server answers: metrics, traces. None of it changes an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vla_serve.engine.sessions import Session
from vla_serve.engine.ticket import Answer


class Watcher:
    """Told of what happens, in the event loop: each method returns at once. This one does nothing."""

    def began(self, rpc: str, request_id: str, metadata: Iterable[tuple[str, Any]]) -> None:
        """A call begins in this task."""

    def called(self, rpc: str, code: str) -> None:
        """A call, or an item of one (``RPC.item``), has its status."""

    def ended(self, rpc: str) -> None:
        """The call that began in this task is over; without a status where its client went away."""

    def answered(self, session: Session, answer: Answer, total_ms: float, request_id: str) -> None:
        """A chunk is on its way."""

    def executed(self, policy: str, steps: int) -> None:
        """A robot reported the steps that it executed."""


class Watchers(Watcher):
    """Several, each told of all."""

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self._all = tuple(watchers)

    def began(self, rpc: str, request_id: str, metadata: Iterable[tuple[str, Any]]) -> None:
        for watcher in self._all:
            watcher.began(rpc, request_id, metadata)

    def called(self, rpc: str, code: str) -> None:
        for watcher in self._all:
            watcher.called(rpc, code)

    def ended(self, rpc: str) -> None:
        for watcher in self._all:
            watcher.ended(rpc)

    def answered(self, session: Session, answer: Answer, total_ms: float, request_id: str) -> None:
        for watcher in self._all:
            watcher.answered(session, answer, total_ms, request_id)

    def executed(self, policy: str, steps: int) -> None:
        for watcher in self._all:
            watcher.executed(policy, steps)
