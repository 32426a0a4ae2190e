"""Processes that end with the one that started them, also where that is killed and can end nobody."""

from __future__ import annotations

import multiprocessing
import os
from threading import Thread


def end_with_parent() -> None:
    """Call it first in a process that :mod:`multiprocessing` has started: as an ``initializer``, for example.

    Without it an idle one of a ``ProcessPoolExecutor`` waits for work for ever, and another one finishes what
    it has: an episode, a training. In a process that somebody else started it does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)  # nobody is there to be told

    Thread(target=watch, name="vla-parent", daemon=True).start()
