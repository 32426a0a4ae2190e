"""What the page shows of answers: numbers of the latest ones, and each session's last observation.

Shapes: H, W image size in pixels, T steps of a chunk, A action dims, S state dims.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.axes import axes_of
from vla_core.specs import GroupSpec, RobotSpec

from vla_serve.contract_text import contract_lines
from vla_serve.engine.policy import camera_inputs
from vla_serve.engine.sessions import Session
from vla_serve.engine.shelf import Served
from vla_serve.engine.ticket import Answer
from vla_serve.observability.standing import Standing
from vla_serve.observability.watching import Watcher

THUMBNAIL = 256
"""Most pixels of a side of the pictures that are kept."""

SESSIONS = 32
"""So many sessions' observations are kept, those that asked last."""

ANSWERS = 4096
"""Numbers of so many answers are kept until they are asked for; older ones are lost to the page."""

SHOWN = 8
"""Sessions whose pictures are sent at a time, however many browsers look on."""

NAME = 8
"""Characters of a session's id that leave the server: who has the whole one can act in it."""


@dataclass(frozen=True)
class Seen:
    """What a session sent last, and what it got."""

    at: float
    answers: int
    request_id: str
    spec: RobotSpec
    images: Mapping[str, NDArray[np.uint8]]
    instruction: str
    state: NDArray[np.float32] | None
    actions: NDArray[np.float32]
    numbers: tuple[float, ...]


class Recorder(Watcher):
    """Takes notes in the event loop, in microseconds; :meth:`report` makes text of them in another thread."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._numbers: deque[tuple[float, ...]] = deque(maxlen=ANSWERS)
        self._refused: Counter[str] = Counter()
        self._on = True

    def off(self) -> None:
        """Nobody will ask any more: forget all, keep nothing."""
        with self._lock:
            self._on = False
            self._seen.clear()
            self._numbers.clear()

    def called(self, rpc: str, code: str) -> None:
        if code != "OK" and rpc in _PREDICTING:
            with self._lock:
                self._refused[code] += 1

    def answered(self, session: Session, answer: Answer, total_ms: float, request_id: str) -> None:
        if not self._on:
            return
        observation = answer.row.observation
        parts = [getattr(answer, f"{part}_ms") for part in PARTS]
        now = time.monotonic()
        numbers = (now, total_ms, *parts, answer.batch, answer.depth)
        seen = Seen(
            now,
            1,
            request_id,
            session.spec,
            {name: thumbnail(image) for name, image in observation.images.items()},
            observation.instruction,
            observation.state,
            answer.chunk.actions,
            numbers[1:],
        )
        with self._lock:
            if not self._on:
                return
            before = self._seen.pop(session.id, None)
            self._seen[session.id] = seen if before is None else replace(seen, answers=before.answers + 1)
            if len(self._seen) > SESSIONS:
                self._seen.popitem(last=False)
            self._numbers.append(numbers)

    def report(self, wanted: list[str], contracts: bool) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
        """What there is to show, as plain data, and its pictures; the numbers of each answer are told once.

        Args:
            wanted: first characters of the ids of sessions whose observation is shown; an empty text is the
                one that was answered last.
            contracts: tell the contracts too.
        """
        now = time.monotonic()
        listed = self._standing.sessions.listed()
        known = {session.id for session in listed}
        with self._lock:
            for gone in [key for key in self._seen if key not in known]:
                del self._seen[gone]
            seen = dict(self._seen)
            numbers = list(self._numbers)
            self._numbers.clear()
            refused = dict(self._refused)
        sessions = [
            {
                "id": session.id[:NAME],
                "policy": session.policy,
                "embodiment": session.spec.embodiment,
                "idle_s": round(now - session.used_at, 1),
                "client": "there" if session.holds else "gone" if session.lost else "unknown",
                "step": max(0, session.episode.step),
                "answers": seen[session.id].answers if session.id in seen else 0,
                "latency_ms": round(seen[session.id].numbers[0], 1) if session.id in seen else None,
            }
            for session in listed[:500]
        ]
        latest = next(reversed(seen), "")
        names = {name or latest[:NAME] for name in wanted[:SHOWN]}
        shown = {key[:NAME]: value for key, value in seen.items() if key[:NAME] in names}
        pictures = [image for value in shown.values() for image in value.images.values()]
        report: dict[str, Any] = {
            "answers": [(round(now - row[0], 3), *(round(value, 3) for value in row[1:])) for row in numbers],
            "refused": refused,
            "sessions": sessions,
            "max_sessions": self._standing.sessions.limit,
            "policies": [self._policy(served) for served in self._standing.shelf],
            "in_flight": self._standing.in_flight.requests,
            "latest": latest[:NAME],
            "shown": {name: _shown(value, now) for name, value in shown.items()},
        }
        if contracts:
            report["contracts"] = {
                f"{served.name} / {name}": list(
                    contract_lines(spec, None, camera_inputs(served.engine.policy))
                )[1:-1]
                for served in self._standing.shelf.answering()
                for name, spec in served.specs.items()
            }
        return report, pictures

    def _policy(self, served: Served) -> dict[str, Any]:
        engine = served.engine
        return {
            "name": served.name,
            "framework": engine.policy.framework,
            "revision": served.revision,
            "state": served.state.value,
            "weights": served.digests.weights[:12],
            "statistics": served.digests.statistics[:12],
            "embodiments": ", ".join(sorted(served.specs)),
            "queue": engine.waiting,
            "pending": engine.pending,
            "max_queue": engine.max_queue,
            "max_batch": engine.max_batch,
        }


PARTS = ("queue", "decode", "prepare", "model", "finish")
"""Of an answer's time."""

_PREDICTING = ("Predict", "PredictBatch.item", "StreamActions.item")


def thumbnail(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every n-th pixel of every n-th line, so that no side is longer than :data:`THUMBNAIL`.

    A picture that is small enough is not copied: its array is of that picture alone.
    """
    stride = -(-max(image_HWC.shape[:2]) // THUMBNAIL)
    return image_HWC if stride <= 1 else image_HWC[::stride, ::stride].copy()


def _shown(seen: Seen, now: float) -> dict[str, Any]:
    state = seen.state
    return {
        "age_s": round(now - seen.at, 1),
        "request_id": seen.request_id,
        "embodiment": seen.spec.embodiment,
        "images": {name: image.shape for name, image in seen.images.items()},
        "instruction": seen.instruction,
        "state": [] if state is None else _groups(seen.spec.observation.state, state[None]),
        "actions": _groups(seen.spec.action.groups, seen.actions),
        "control_hz": seen.spec.action.control_hz,
        "latency_ms": round(seen.numbers[0], 1),
    }


def _groups(groups: tuple[GroupSpec, ...], rows: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Of an array ``[T, A]``: each group's name, unit, meaning, axes and numbers, a list for each dim."""
    out, start = [], 0
    for group in groups:
        values = [[float(f"{x:.5g}") for x in column] for column in rows[:, start : start + group.dim].T]
        out.append(
            {
                "name": group.name,
                "unit": group.unit,
                "representation": group.representation,
                "axes": axes_of(group),
                "values": values,
            }
        )
        start += group.dim
    return out
