"""Things that belong to one process: what was opened before a fork is never read after it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that every process makes for itself, on first use.

    A forked child shares the file offsets of its parent's open files and has none of the threads that
    a decoder started. So it neither reads nor closes what it inherited: it leaves it and makes its own.

    Args:
        make: builds the value; it must be picklable where the owner is pickled.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._value: T | None = None
        self._pid = 0

    def __getstate__(self) -> dict[str, object]:
        return {"_make": self._make, "_value": None, "_pid": 0}

    def get(self) -> T:
        """The value of this process."""
        pid = os.getpid()
        if self._value is None or self._pid != pid:
            if self._value is not None:
                # Freeing an inherited decoder would wait for threads that do not exist here, so it must
                # outlive the interpreter.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._value))
            self._value, self._pid = self._make(), pid
        return self._value
