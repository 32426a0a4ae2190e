"""Tickets in turns: the session that was served longest ago comes first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from vla_serve.engine.ticket import Ticket

REMEMBERED = 4096
"""Sessions whose last turn is known; one that is forgotten is taken for new."""


class FairQueue:
    """A line for each session, served in turns. Not thread-safe: its owner has a lock.

    A session that floods the queue waits behind one that asks now and then, however long its own line is.
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[Ticket]] = {}
        self._served: dict[str, int] = {}
        self._turn = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, session: str) -> list[Ticket]:
        """What a session has here, oldest first."""
        return list(self._lines.get(session, ()))

    def lengths(self) -> dict[str, int]:
        """Session -> tickets."""
        return {session: len(line) for session, line in self._lines.items()}

    def first(self) -> Ticket | None:
        """The one that is due, which :meth:`__iter__` begins with; it takes no order of all."""
        session = min(self._lines, key=lambda session: self._served.get(session, 0), default=None)
        return None if session is None else self._lines[session][0]

    def push(self, ticket: Ticket) -> None:
        """Add one at the end of its session's line."""
        self._lines.setdefault(ticket.session, deque()).append(ticket)
        self._count += 1

    def __iter__(self) -> Iterator[Ticket]:
        """All, in the order in which they are due: the first of each session, then the second of each."""
        sessions = sorted(self._lines, key=lambda session: self._served.get(session, 0))
        lines = [list(self._lines[session]) for session in sessions]
        for place in range(max((len(line) for line in lines), default=0)):
            yield from (line[place] for line in lines if place < len(line))

    def take(self, ticket: Ticket) -> None:
        """Take one out because it is served: that was its session's turn."""
        self.discard(ticket)
        self._turn += 1
        self._served.pop(ticket.session, None)
        self._served[ticket.session] = self._turn
        if len(self._served) > REMEMBERED:
            del self._served[next(iter(self._served))]

    def discard(self, ticket: Ticket) -> bool:
        """Take one out, if it is here."""
        line = self._lines.get(ticket.session)
        if line is None or ticket not in line:
            return False
        line.remove(ticket)
        self._count -= 1
        if not line:
            del self._lines[ticket.session]
        return True
