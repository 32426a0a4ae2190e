"""The event loop of all servers of this process, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop; it begins with the first call and ends with the process.

    One for all: gRPC's asyncio side shares a queue of events in a process, and two loops would take each
    other's.
    """
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="vla-rpc", daemon=True).start()
        return _loop


def run(coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
    """The result of a coroutine of the loop; not to be called from it."""
    return asyncio.run_coroutine_threadsafe(coroutine, event_loop()).result(timeout_s)
