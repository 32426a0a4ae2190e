"""Things that belong to one process: what was opened before a fork is never read after it."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that every process makes for itself, on first use.

    A forked child shares the file offsets of its parent's open files and has none of the threads that
    a decoder started. So it neither reads nor frees what it inherited, also where it is garbage already: it
    leaves it and makes its own.

    Args:
        make: builds the value; it must be picklable where the owner is pickled.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._value: T | None = None
        _ALL.add(self)

    def __getstate__(self) -> dict[str, object]:
        return {"_make": self._make, "_value": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        _ALL.add(self)

    def get(self) -> T:
        """The value of this process."""
        if self._value is None:
            self._value = self._make()
        return self._value

    def leave(self) -> None:
        """Keep what was inherited for good, and begin anew: called in a child as it is forked."""
        if self._value is not None:
            # Freeing an inherited decoder would wait for threads that do not exist here, so it must
            # outlive the interpreter.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._value))
            self._value = None


_ALL: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()


def _forked() -> None:
    # Decoders whose owner is gone may lie in cycles that nobody has collected yet: nor does the child.
    gc.freeze()
    for value in list(_ALL):
        value.leave()


os.register_at_fork(after_in_child=_forked)
