"""Which session a connection is of, as far as that can be told before its next request is read."""

from __future__ import annotations

from collections import OrderedDict

from vla_serve.engine.sessions import Session

REMEMBERED = 4096
"""Connections, those that were used last; one that is forgotten is known again by its next request."""


class Connections:
    """Connection -> its only session. Used in the front's event loop alone.

    None where a connection has been of several, as a proxy's is, and where its requests take the place of
    older ones: how long such a one will wait cannot be told before it is read.
    """

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, tuple[str, str] | None] = OrderedDict()

    def used(self, peer: str, session: Session, supersedes: bool = False) -> None:
        """The connection is of this session."""
        own = (session.id, session.policy)
        known = self._sessions.pop(peer, own)
        self._sessions[peer] = own if known == own and not supersedes else None
        if len(self._sessions) > REMEMBERED:
            self._sessions.popitem(last=False)

    def session_of(self, peer: str) -> tuple[str, str] | None:
        """Id and policy of the only session of a connection."""
        return self._sessions.get(peer)
