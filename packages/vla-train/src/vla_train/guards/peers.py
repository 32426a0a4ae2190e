"""Ranks that watch each other: one that is gone or stands still ends all, with one line that names it.

A collective waits for a rank that will never come, for minutes (NCCL) or half an hour (gloo), and then ends
in a traceback that names nobody. Here each rank says where it is every two seconds, from a thread of its own
and through the store at which the ranks met.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from vla_core.errors import UserError

from vla_train.engine import Engine
from vla_train.guards.exits import LOST, Stopped
from vla_train.guards.last_words import PREFIX, give_way
from vla_train.monitoring.meter import COMPUTING, READING, Meter

BEAT_S = 2.0
SILENT_S = 45.0
"""A rank that said nothing for so long is gone, or stopped."""
BROKEN_S = 10.0
"""The same once an exchange with it broke."""

_DONE, _LEFT, _INTERRUPTED = "done", "left", "interrupted"
_WORDS = (_DONE, _LEFT, _INTERRUPTED)
"""The last word of a rank."""


@dataclass
class _Peer:
    """What was heard of a rank: its last word, and when (monotonic, here) it was heard and it moved."""

    word: str = ""
    heard: float = 0.0
    place: str = ""
    moved: float = 0.0

    def hear(self, word: str, now: float) -> None:
        if word != self.word:
            self.word, self.heard = word, now
        place = word.partition(" ")[2]
        if place != self.place:
            self.place, self.moved = place, now

    @property
    def order(self) -> tuple[int, bool]:
        """Who is behind has the lowest: before a step's exchange there is the reading of its data."""
        step, _, doing = self.place.partition(" ")
        return int(step), doing != READING


class Peers(AbstractContextManager[None]):
    """A block in which the ranks watch each other; nothing where there is one rank.

    Args:
        engine: knows the ranks.
        meter: knows at what this rank is.
        limit_s: a rank that reads or computes for so long at one step stands still; 0: nobody watches.
            Validating and saving take as long as they take.
        ways: says how to go on with the run.
        busy: whether this rank writes what shall become whole although another one has left.
    """

    def __init__(
        self,
        engine: Engine,
        meter: Meter,
        limit_s: float,
        ways: Callable[[], str],
        busy: Callable[[], bool],
    ) -> None:
        self.ways, self.busy = ways, busy
        self.rank, self.world, self.meter, self.limit_s = engine.rank, engine.world, meter, limit_s
        self.on = engine.world > 1 and limit_s > 0
        self.beat_s = min(BEAT_S, limit_s / 4)
        self._over = threading.Event()
        self._broken = False
        self._peers = [_Peer() for _ in range(engine.world)]

    def __enter__(self) -> None:
        if self.on:
            # A connection of its own: the ranks' one may wait in a collective.
            store: Any = _get_default_store()
            own = store.clone()
            self._store: Any = PrefixStore("vla_train/peers", own)
            self._words: Any = PrefixStore(PREFIX, own)
            now = time.monotonic()
            self._peers = [_Peer(heard=now, moved=now) for _ in range(self.world)]
            self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.on:
            return
        if error is not None and _is_exchange(error):
            # The others know more, or fall silent: the thread finds out who, and ends this process.
            self._broken = True
            self._thread.join(2 * BROKEN_S)
        self._over.set()
        self._thread.join()
        with suppress(DistError, RuntimeError):
            self._say(_last_word(error))
            if self.rank == 0:
                self._linger()
        if error is not None and _is_exchange(error):
            said = str(error).strip().splitlines()[0]
            raise UserError(f"the exchange between ranks broke at step {self.meter.place}: {said}") from error

    def _linger(self) -> None:
        """The store may be this process: the others shall read its last word."""
        end = time.monotonic() + 2 * self.beat_s
        others = [str(rank) for rank in range(1, self.world)]
        while time.monotonic() < end and any(self._read(key) not in _WORDS for key in others):
            time.sleep(0.02)

    # ------------------------------------------------------------------ the thread

    def _watch(self) -> None:
        beats = 0
        while not self._over.wait(self.beat_s):
            beats += 1
            try:
                self._say(f"{beats} {self.meter.place}")
                words = [self._read(str(rank)) for rank in range(self.world)]
            except (DistError, RuntimeError):
                self._end("where the ranks meet (the launcher, or rank 0) is gone")
            now = time.monotonic()
            for peer, word in zip(self._peers, words, strict=True):
                peer.hear(word, now)
            left = [rank for rank, word in enumerate(words) if word in (_LEFT, _INTERRUPTED)]
            # Where all make a mistake, or get Ctrl-C, this one's main thread ends by itself.
            if left and not self.busy() and not self._over.wait(self.beat_s):
                give_way(self._words, self.rank, left[0])
                os._exit(LOST)
            if lost := self._lost(now):
                self._end(lost)

    def _say(self, word: str) -> None:
        self._store.set(str(self.rank), word)

    def _read(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _lost(self, now: float) -> str | None:
        """What is wrong with whom; None: nothing."""
        silence = min(BROKEN_S if self._broken else SILENT_S, self.limit_s)
        running = {rank: peer for rank, peer in enumerate(self._peers) if peer.word not in _WORDS}
        silent = [rank for rank, peer in running.items() if now - peer.heard > silence]
        if silent:
            where = "; ".join(
                f"rank {rank} ({self._peers[rank].place or 'not in the loop'})" for rank in silent
            )
            verb = "was" if len(silent) == 1 else "were"
            return f"{where} {verb} not heard of for {silence:.0f} s: gone, or stopped"
        if not running or not all(peer.place for peer in running.values()):
            return None
        slowest = min(peer.order for peer in running.values())
        behind = {rank: peer for rank, peer in running.items() if peer.order == slowest}
        doing = next(iter(behind.values())).place.partition(" ")[2]
        since = now - max(peer.moved for peer in behind.values())
        if since <= self.limit_s or doing not in (READING, COMPUTING):
            return None
        who = (
            "all ranks stand" if len(behind) == len(running) else f"rank {', '.join(map(str, behind))} stands"
        )
        return f"{who} still at step {slowest[0]}, {doing}, for {since:.0f} s"

    def _end(self, text: str) -> NoReturn:
        """End this process, whatever its main thread waits for; the first rank that lives speaks."""
        now = time.monotonic()
        living = (
            rank
            for rank, peer in enumerate(self._peers)
            if rank == self.rank or now - peer.heard < 3 * self.beat_s
        )
        if min(living) == self.rank:
            limit = f"trainer.hang_timeout_s: {self.limit_s:g}"
            sys.stderr.write(f"vla-train: {text} ({limit}); all ranks end; {self.ways()}\n")
            sys.stderr.flush()
        # Collectives cannot be called off, and an orderly exit would wait for them.
        os._exit(LOST)


def _last_word(error: BaseException | None) -> str:
    """How the block ends; all ranks end by a signal together, but Ctrl-C may come to one alone."""
    if error is None or isinstance(error, Stopped):
        return _DONE
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else _LEFT


def _is_exchange(error: BaseException) -> bool:
    """Whether another rank is what is wrong."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
