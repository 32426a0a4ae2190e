"""Tickets in turns: one of each session, then the second of each, and so on."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from vla_serve.engine.ticket import Ticket


class FairQueue:
    """A line for each session, served round robin. Not thread-safe: its owner has a lock."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, session: str) -> list[Ticket]:
        """What a session has here, oldest first."""
        return list(self._lines.get(session, ()))

    def lengths(self) -> dict[str, int]:
        """Session -> tickets."""
        return {session: len(line) for session, line in self._lines.items()}

    def push(self, ticket: Ticket) -> None:
        """Add one at the end of its session's line."""
        self._lines.setdefault(ticket.session, deque()).append(ticket)
        self._count += 1

    def __iter__(self) -> Iterator[Ticket]:
        """All, in the order in which they are due."""
        lines = [list(line) for line in self._lines.values()]
        for turn in range(max((len(line) for line in lines), default=0)):
            yield from (line[turn] for line in lines if turn < len(line))

    def take(self, ticket: Ticket) -> None:
        """Take one out because it is served: its session goes to the end of the round."""
        self.discard(ticket)
        if ticket.session in self._lines:
            self._lines.move_to_end(ticket.session)

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
