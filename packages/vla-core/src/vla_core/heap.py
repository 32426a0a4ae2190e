"""Pauses of Python's garbage collector, in programs that run for long after a large start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def settle_heap() -> None:
    """Collect, and have later collections look only at what is made from now on.

    Imports, models and compiled code leave some hundred thousand objects that stay. A full collection looks
    at them all, for some tenths of a second in which no other thread of Python runs: a robot waits for its
    answer, other ranks for this one. What has become garbage among them since is found by calling this again.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextmanager
def settled_heap() -> Iterator[None]:
    """A block in which :func:`settle_heap` may be called; afterwards all objects are looked at again."""
    try:
        yield
    finally:
        gc.unfreeze()
