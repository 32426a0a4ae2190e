"""Answered chunks that can be continued (real-time chunking).

Shapes: T steps of a chunk, R steps left of it, A action dims, S state dims.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import count

from vla_core.errors import UserError
from vla_core.specs import RobotSpec
from vla_core.types import ActionChunk, Float

from vla_serve.engine.errors import FieldError

CHUNKS_KEPT = 8
"""Of an episode, the latest: a client that lost a few answers on the way still executes an older chunk."""


@dataclass(frozen=True)
class KeptChunk:
    """An answer ``actions [T, A]``, the raw state ``[S]`` and the control step of what it answered."""

    actions: Float
    state: Float | None
    step: int | None


class KeptChunks:
    """Chunks by id. Thread-safe.

    Ids begin with a word of this episode's alone, so that one of another session or episode is unknown, and
    never taken for another chunk.
    """

    def __init__(self) -> None:
        self._episode, self._count = secrets.token_hex(8), count()
        self._chunks: OrderedDict[str, KeptChunk] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, chunk: ActionChunk, state: Float | None, step: int | None) -> str:
        """Keep a copy and return its id; the oldest goes."""
        name = f"{self._episode}-{next(self._count)}"
        kept = KeptChunk(chunk.actions.copy(), None if state is None else state.copy(), step)
        with self._lock:
            self._chunks[name] = kept
            if len(self._chunks) > CHUNKS_KEPT:
                self._chunks.popitem(last=False)
        return name

    def get(self, name: str, field: str = "previous.chunk_id") -> KeptChunk:
        """The chunk; :class:`FieldError`, of ``field``, when it is not kept."""
        with self._lock:
            chunk = self._chunks.get(name)
        if chunk is None:
            description = (
                f"no chunk '{name[:40]}' in this session's episode; it is another one's, from before the "
                f"reset, or older than the last {CHUNKS_KEPT}: leave previous out once"
            )
            raise FieldError(field, description, "UNKNOWN_CHUNK")
        return chunk

    def forget_before(self, name: str) -> None:
        """Forget the chunks that are older than one that is kept."""
        with self._lock:
            while self._chunks and next(iter(self._chunks)) != name:
                self._chunks.popitem(last=False)


def check_carries_over(spec: RobotSpec) -> None:
    """Raise :class:`UserError` if actions of ``spec`` mean nothing from another state, naming the group."""
    _offsets(spec)


def carry_over(kept: KeptChunk, executed: int, state: Float | None, spec: RobotSpec) -> Float:
    """What is left of a chunk after ``executed`` steps, ``[R, A]`` in the robot's units, as seen from now.

    Absolute targets and changes since the previous command are what they were; an offset from the state at
    the chunk's start becomes one from ``state [S]``, and leads to the same place.

    Raises:
        UserError: an offset group for which that cannot be told.
    """
    left_RA: Float = kept.actions[executed:].copy()
    for action, group in _offsets(spec):
        # The contract has a state, so both observations were checked for it.
        assert kept.state is not None
        assert state is not None
        left_RA[:, action] += kept.state[group] - state[group]
    return left_RA


def _offsets(spec: RobotSpec) -> list[tuple[slice, slice]]:
    """Dims of each relative action group, and of the state that it is an offset from."""
    states = {group.name: group for group in spec.observation.state}
    pairs = []
    for group in spec.action.groups:
        if group.representation != "relative":
            continue
        state = states.get(group.name)
        if group.rotation != "none" or state is None or (state.dim, state.unit) != (group.dim, group.unit):
            raise UserError(
                f"previous chunk: action group '{group.name}' is an offset from the state at the chunk's "
                "start; to continue it takes a state group of its name, size and unit, and no rotation"
            )
        pairs.append((spec.action.slices()[group.name], spec.observation.state_slices()[group.name]))
    return pairs
