"""One line for a mistake, however many ranks make it: the first rank speaks, another one says who it is."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import Any

PREFIX = "vla_train/last_words"
"""Of their keys in the store at which the ranks met."""
WAIT_S = 5.0
"""For the first rank: all ranks make a mistake of the config within moments of each other."""


def say(text: str) -> None:
    """Print ``text`` on stderr, unless the first rank says the same.

    Ranks that have met compare what they would say. Before that, ranks of one host read the same files: the
    first of a host speaks.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        _print(text)
        return
    store = _store()
    if store is None:
        if int(os.environ.get("LOCAL_RANK", rank)) == 0:
            _print(text, rank)
        else:
            # A launcher ends all as soon as one has ended: the one that speaks shall be heard.
            time.sleep(WAIT_S)
    elif rank == 0:
        _print(text)
        _tell(store, "0", text)
        # The store may be this process.
        _until(store, [str(other) for other in range(1, world)])
    else:
        same = _until(store, ["0"]) and _read(store, "0") == text
        if not same:
            _print(text, rank)
        _tell(store, str(rank), text)


def give_way(store: Any, rank: int, other: int) -> None:
    """``rank`` ends and has nothing to say; returns when ``other`` has spoken, or does not.

    A launcher ends all as soon as one has ended: the one that speaks shall be heard.

    Args:
        store: with :data:`PREFIX`.
        rank, other: of this process, and of the one that says why.
    """
    _tell(store, str(rank), "")
    _until(store, [str(other)])


def _print(text: str, rank: int = 0) -> None:
    # In one piece: ranks share a terminal.
    who = f"rank {rank}: " if rank else ""
    sys.stderr.write(f"vla-train: {who}{text}\n")
    sys.stderr.flush()


def _store() -> Any:
    """Where the ranks met; None: they have not."""
    # A mistake before torch was needed does not wait for it.
    if "torch.distributed" not in sys.modules:
        return None
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return None
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore(PREFIX, _get_default_store())


def _tell(store: Any, key: str, text: str) -> None:
    with suppress(RuntimeError):  # the store is gone with its rank
        store.set(key, text)


def _read(store: Any, key: str) -> str:
    try:
        return str(store.get(key).decode())
    except RuntimeError:
        return ""


def _until(store: Any, keys: list[str]) -> bool:
    """Wait until all have spoken, at most :data:`WAIT_S`; whether they have."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            if store.check(keys):
                return True
        except RuntimeError:
            return False
        time.sleep(0.02)
    return False
