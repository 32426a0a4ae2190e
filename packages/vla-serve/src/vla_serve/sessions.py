"""Open sessions of a server, with a limit and idle expiry."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field

from vla_core.specs import RobotSpec

from vla_serve.kept_chunks import KeptChunks
from vla_serve.status import exhausted, invalid


@dataclass
class Episode:
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
    """One client's state."""

    id: str
    spec: RobotSpec
    episode: Episode = field(default_factory=Episode)
    used_at: float = field(default_factory=time.monotonic)


class Sessions:
    """Sessions by id. Thread-safe.

    Expiry needs no clock thread: an idle session is refused when it is used, and makes room when
    another one is opened.
    """

    def __init__(self, limit: int, idle_s: float) -> None:
        self.limit, self.idle_s = limit, idle_s
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, spec: RobotSpec) -> Session:
        """A new session; RESOURCE_EXHAUSTED when there are too many."""
        with self._lock:
            oldest = time.monotonic() - self.idle_s
            self._sessions = {k: s for k, s in self._sessions.items() if s.used_at > oldest}
            if len(self._sessions) >= self.limit:
                message = f"{self.limit} sessions are open; close one or raise --max_sessions"
                raise exhausted(message, "TOO_MANY_SESSIONS", 1.0)
            session = Session(secrets.token_hex(16), spec)
            self._sessions[session.id] = session
            return session

    def get(self, session_id: str) -> Session:
        """The session, whose idle time starts anew; INVALID_ARGUMENT when unknown or expired."""
        with self._lock:
            session = self._sessions.get(session_id)
            now = time.monotonic()
            if session is None or now - session.used_at > self.idle_s:
                self._sessions.pop(session_id, None)
                raise unknown(session_id, self.idle_s)
            session.used_at = now
            return session

    def reset(self, session_id: str, instruction: str) -> None:
        """Start an episode."""
        self.get(session_id).episode = Episode(instruction)

    def advance(self, episode: Episode, step: int) -> None:
        """Note the control step; INVALID_ARGUMENT when it decreases within an episode."""
        with self._lock:
            if step < episode.step:
                raise invalid(
                    "step", f"{step} after {episode.step}; call ResetSession at the start of an episode"
                )
            episode.step = step

    def close(self, session_id: str) -> None:
        """Forget the session; INVALID_ARGUMENT when unknown."""
        with self._lock:
            if self._sessions.pop(session_id, None) is None:
                raise unknown(session_id, self.idle_s)


def unknown(session_id: str, idle_s: float) -> Exception:
    """The failure for an id that is not open."""
    description = (
        f"no session '{session_id[:40]}'; it was closed, was idle for {idle_s:g} s, or the server restarted"
    )
    return invalid("session_id", description, "UNKNOWN_SESSION")
