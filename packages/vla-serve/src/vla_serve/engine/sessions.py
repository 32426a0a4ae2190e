"""Open sessions, with a limit, idle expiry, and room made by those whose client has gone."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vla_core.specs import RobotSpec

from vla_serve.engine.admission import with_jitter
from vla_serve.engine.errors import FieldError, Refused
from vla_serve.engine.kept_chunks import KeptChunks
from vla_serve.engine.reach import Reach

LOST_S = 10.0
"""A session whose client has gone is kept for so long, in case it comes back over a new connection."""

QUIET_S = 30.0
"""A session that nobody ever held makes room for a newcomer after so long without a call."""


@dataclass
class SessionEpisode:
    """What a reset forgets.

    ``step`` is the last control step seen; ``name`` is this episode's alone, in all sessions. A request keeps
    to the episode it came in, so that an answer that crosses a reset reaches nothing of the next one.
    """

    instruction: str = ""
    step: int = -1
    name: str = field(default_factory=lambda: secrets.token_hex(16))
    chunks: KeptChunks = field(default_factory=KeptChunks)


@dataclass
class Session:
    """One client's state with one policy; ``owner`` is who opened it, as far as the transport knows."""

    id: str
    spec: RobotSpec
    used_at: float
    owner: str = ""
    policy: str = ""
    episode: SessionEpisode = field(default_factory=SessionEpisode)
    holds: int = 0
    was_held: bool = False

    def __post_init__(self) -> None:
        self.reach = Reach(self.spec)

    @property
    def lost(self) -> bool:
        """Its client held it, and has gone."""
        return self.was_held and not self.holds


class Sessions:
    """Sessions by id. Thread-safe.

    A session expires when it was not used for ``idle_s``; when its client held it (:meth:`hold`) and is
    gone, after ``lost_s``. A newcomer for whom there is no room takes that of a lost one at once, and else
    that of the one that was never held and is quiet for longest. ``clock`` says what time it is, in seconds.
    """

    def __init__(
        self,
        limit: int,
        idle_s: float,
        lost_s: float = LOST_S,
        quiet_s: float = QUIET_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit, self.idle_s, self.clock = limit, idle_s, clock
        self._lost_s, self._quiet_s = min(lost_s, idle_s), quiet_s
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def listed(self) -> list[Session]:
        """All of them, in the order of their opening."""
        with self._lock:
            return list(self._sessions.values())

    def _expired(self, session: Session, now: float) -> bool:
        return now - session.used_at > (self._lost_s if session.lost else self.idle_s)

    def sweep(self) -> None:
        """Forget what has expired."""
        now = self.clock()
        with self._lock:
            self._sessions = {k: s for k, s in self._sessions.items() if not self._expired(s, now)}

    def open(self, spec: RobotSpec, owner: str = "", policy: str = "") -> Session:
        """A new session; :class:`Refused` when there are too many."""
        self.sweep()
        with self._lock:
            if len(self._sessions) >= self.limit and not self._make_room():
                message = f"{self.limit} sessions are open; close one or raise --max_sessions"
                raise Refused(message, "TOO_MANY_SESSIONS", with_jitter(1.0))
            session = Session(secrets.token_hex(16), spec, self.clock(), owner, policy)
            self._sessions[session.id] = session
            return session

    def _make_room(self) -> bool:
        now = self.clock()
        free = [
            s
            for s in self._sessions.values()
            if s.lost or (not s.was_held and now - s.used_at > self._quiet_s)
        ]
        if not free:
            return False
        del self._sessions[min(free, key=lambda s: (not s.lost, s.used_at)).id]
        return True

    def get(self, session_id: str, owner: str = "") -> Session:
        """The session, used now; :class:`FieldError` when it is unknown, expired or another's."""
        with self._lock:
            session = self._sessions.get(session_id)
            now = self.clock()
            if session is None or self._expired(session, now) or session.owner != owner:
                if session is not None and session.owner == owner:
                    del self._sessions[session_id]
                raise self._unknown(session_id)
            session.used_at = now
            return session

    @contextmanager
    def hold(self, session_id: str, owner: str = "") -> Iterator[Session]:
        """While it is entered, the session's client is there."""
        session = self.get(session_id, owner)
        with self._lock:
            session.holds += 1
            session.was_held = True
        try:
            yield session
        finally:
            with self._lock:
                session.holds -= 1
                session.used_at = self.clock()

    def reset(self, session_id: str, instruction: str, owner: str = "") -> None:
        """Start an episode."""
        self.get(session_id, owner).episode = SessionEpisode(instruction)

    def advance(self, episode: SessionEpisode, step: int, field: str = "step") -> None:
        """Note the control step; :class:`FieldError` when it decreases within an episode."""
        with self._lock:
            if step < episode.step:
                description = f"{step} after {episode.step}; call ResetSession at the start of an episode"
                raise FieldError(field, description)
            episode.step = step

    def close(self, session_id: str, owner: str = "") -> None:
        """Forget the session; :class:`FieldError` when unknown."""
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None or session.owner != owner:
                raise self._unknown(session_id)
            del self._sessions[session_id]

    def _unknown(self, session_id: str) -> FieldError:
        description = (
            f"no session '{session_id[:8]}'; it was closed, was idle for {self.idle_s:g} s, or the server "
            "restarted"
        )
        return FieldError("session_id", description, "UNKNOWN_SESSION")
