"""Policies by name and revision: which one answers, and how one takes another's place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from vla_core.errors import suggest
from vla_core.specs import RobotSpec

from vla_serve.engine.admission import too_late
from vla_serve.engine.engine import Engine
from vla_serve.engine.errors import FieldError, NotServing, WrongState
from vla_serve.engine.policy import Described, camera_inputs


class State(Enum):
    """What a revision does."""

    STANDBY = "standby"
    CURRENT = "current"
    DRAINED = "drained"


@dataclass(frozen=True)
class Digests:
    """SHA-256 of what a policy is made of, in hex; empty where it came from no file.

    Args:
        weights, statistics: of the files.
        data: of the numbers it was trained on; also empty where the checkpoint does not say.
        checkpoint: no digest: where it was loaded from, as the server was told.
    """

    weights: str = ""
    statistics: str = ""
    data: str = ""
    checkpoint: str = ""


@dataclass(eq=False)
class Served:
    """One revision of a policy, with the engine that runs it."""

    name: str
    revision: str
    engine: Engine
    digests: Digests
    specs: Mapping[str, RobotSpec]
    state: State = State.STANDBY


class Shelf:
    """All policies of a server. Used from one thread, the front's event loop.

    Whoever asks for the current revision submits to it before anything else can run there. So a revision
    that was replaced gets no more requests, and what it has it answers: nothing fails.
    """

    def __init__(self) -> None:
        self._revisions: dict[str, list[Served]] = {}
        self._counts: dict[str, int] = {}
        self._stopping = False

    def __iter__(self) -> Iterator[Served]:
        """All revisions, by name, in the order of their loading."""
        return iter([served for revisions in [*self._revisions.values()] for served in revisions])

    def stop(self) -> None:
        """Hand out no policy any more."""
        self._stopping = True

    def check_serving(self) -> None:
        """Raise :class:`NotServing` after :meth:`stop`."""
        if self._stopping:
            raise NotServing("the server is shutting down")

    @property
    def names(self) -> list[str]:
        """Of the policies, the first one first."""
        return list(self._revisions)

    # What answers

    def current(self, name: str) -> Served:
        """The revision that answers; :class:`NotServing` when the policy is drained or gone."""
        self.check_serving()
        for served in self._revisions.get(name, ()):
            if served.state is State.CURRENT:
                return served
        raise NotServing(f"policy '{name}' takes no requests now")

    def named(self, name: str, prefix: str = "") -> Served:
        """As :meth:`current`; empty: the only policy. :class:`FieldError` for a name that is not served."""
        self.check_serving()
        if not name and len(self._revisions) == 1:
            return self.current(next(iter(self._revisions)))
        if not name:
            raise FieldError(f"{prefix}policy", f"name one of {', '.join(sorted(self._revisions))}")
        if name not in self._revisions:
            description = f"'{name[:64]}' is not served{suggest(name[:64], self._revisions)}"
            raise FieldError(f"{prefix}policy", description)
        return self.current(name)

    def answering(self) -> list[Served]:
        """The revisions that answer."""
        return [served for served in self if served.state is State.CURRENT]

    def check_in_time(self, left_s: float, session: tuple[str, str] | None = None) -> None:
        """Raise :class:`Refused` for a request whose deadline cannot be kept, whatever is in it.

        ``session``: its id and policy; what waits before its next request counts too. None: unknown.
        Or :class:`NotServing` after :meth:`stop`.
        """
        self.check_serving()
        if session is None:
            soonest = min((served.engine.soonest_s for served in self.answering()), default=0.0)
        else:
            name, policy = session
            soonest = self.current(policy).engine.soonest_of(name)
        if left_s < soonest:
            raise too_late(soonest, left_s)

    @property
    def largest_picture(self) -> int:
        """Pixels of the largest one that any policy looks at."""
        specs = [spec for served in self for spec in served.specs.values()]
        return max((c.height * c.width for spec in specs for c in spec.observation.cameras), default=0)

    # Coming and going

    def add(self, name: str, engine: Engine, digests: Digests) -> Served:
        """A new revision, standing by."""
        specs = dict(engine.policy.specs)
        self.check_contract(name, engine.policy)
        self._counts[name] = self._counts.get(name, 0) + 1
        served = Served(name, str(self._counts[name]), engine, digests, specs)
        self._revisions.setdefault(name, []).append(served)
        return served

    def check_contract(self, name: str, policy: Described) -> None:
        """Raise :class:`WrongState` if the contract is not that under which ``name`` has sessions."""
        specs, needed = policy.specs, camera_inputs(policy)
        for other in self._revisions.get(name, ()):
            ours = {key: spec.to_dict() for key, spec in other.specs.items()}
            theirs = {key: spec.to_dict() for key, spec in specs.items()}
            if ours != theirs:
                raise WrongState(
                    f"policy '{name}' is served with another contract (embodiments, cameras, state, actions, "
                    "horizon or rate differ); load it under another name"
                )
            if needed != (known := camera_inputs(other.engine.policy)):
                raise WrongState(
                    f"policy '{name}' is served as one that needs {_said(known)} of a camera, the new one "
                    f"needs {_said(needed)}; load it under another name"
                )

    def find(self, name: str, revision: str) -> Served:
        """One revision; empty: the latest. :class:`FieldError` when there is none."""
        revisions = self._revisions.get(name)
        if not revisions:
            raise FieldError("policy", f"'{name[:64]}' is not served{suggest(name[:64], self._revisions)}")
        if not revision:
            return revisions[-1]
        known = {served.revision: served for served in revisions}
        if revision not in known:
            raise FieldError("revision", f"'{revision[:64]}' is not here{suggest(revision[:64], known)}")
        return known[revision]

    def promote(self, served: Served) -> Served | None:
        """Make ``served`` answer; what did before, and stands by now."""
        before = None
        for other in self._revisions[served.name]:
            if other.state is not State.STANDBY and other is not served:
                before, other.state = other, State.STANDBY
        served.state = State.CURRENT
        return before

    def drain(self, name: str) -> Served:
        """The revision that answered takes no more requests."""
        if name not in self._revisions:
            raise FieldError("policy", f"'{name[:64]}' is not served{suggest(name[:64], self._revisions)}")
        revisions = self._revisions[name]
        served = next((s for s in revisions if s.state is not State.STANDBY), None)
        if served is None:
            known = ", ".join(s.revision for s in revisions)
            raise WrongState(f"policy '{name}' has no revision that answers (standing by: {known})")
        served.state = State.DRAINED
        return served

    def remove(self, served: Served) -> None:
        """Forget a revision; :class:`WrongState` for one that answers."""
        if served.state is State.CURRENT:
            raise WrongState(
                f"revision {served.revision} of policy '{served.name}' answers requests; drain the "
                "policy first, or promote another revision"
            )
        left = [other for other in self._revisions[served.name] if other is not served]
        if left:
            self._revisions[served.name] = left
        else:
            del self._revisions[served.name]


def _said(inputs: frozenset[str]) -> str:
    return ", ".join(sorted(inputs)) or "pictures alone"
