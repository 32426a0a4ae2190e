"""What a start does before there is a table to show: said at once, and again while it lasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AFTER_S = 10.0
"""What takes longer is named."""
AGAIN_S = 15.0


@contextmanager
def under_way(say: Callable[[str], None] | None, what: str) -> Iterator[None]:
    """A block that may take long: named once it has lasted :data:`AFTER_S`, then every :data:`AGAIN_S`.

    Args:
        say: says a line, in another thread; None: nothing is said.
        what: is done.
    """
    if say is None:
        yield
        return
    over, began = threading.Event(), time.monotonic()

    def tell() -> None:
        wait = AFTER_S
        while not over.wait(wait):
            say(f"{what}: {time.monotonic() - began:.0f} s so far")
            wait = AGAIN_S

    thread = threading.Thread(target=tell, name="under way", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
