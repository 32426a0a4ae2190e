"""Memory that a request needs is kept for the next one, not given back to the system and taken again."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h

KEPT = 16 * 2**20
"""Bytes that each of malloc's arenas may keep free; there are about as many as threads that decode."""

LARGEST = 8 * 2**20
"""Larger blocks always go back to the system: weights of a policy that was unloaded."""


def keep_freed_memory() -> None:
    """Have glibc's malloc keep what pictures of some hundred kB need, where it is glibc's.

    By default such blocks go back to the system after each request, and every page of the next one is cleared
    by the kernel and faulted in again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # not there on other systems, whose malloc has other rules
        mallopt(_TRIM_THRESHOLD, KEPT)
        mallopt(_MMAP_THRESHOLD, LARGEST)


def give_back_freed_memory() -> None:
    """Have glibc's malloc give all that is free back to the system, between what is in use too.

    By itself it does so at the end of an arena alone: a burst of large requests, decoded by several threads,
    would be kept for good.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
