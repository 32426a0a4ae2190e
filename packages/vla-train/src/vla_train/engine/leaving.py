"""Process groups end before the interpreter does, and within a bounded time.

A thread of gloo's keeps the tensors of an exchange a moment longer than the call that waits for it. Where
it lets go of them only once the interpreter has begun to end, it cannot have the interpreter's lock any more,
and torch 2.11 aborts: a rank that did all its work dies of SIGABRT. So the groups go first, and with them
their threads, which have then let go of everything.

Where an exchange is not finished, as after an error between its two ends, such a thread waits for the other
ranks, half an hour unless they end: the process then ends without it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import threading
from functools import cache

from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

LONGEST_S = 20.0
"""Groups whose exchanges are finished take some milliseconds."""

_leaving, _left = threading.Event(), threading.Event()
_code = 1


@cache
def leave_in_order() -> None:
    """Have this process give up its process groups as the first thing when it ends, where they are gloo's.

    Called before there are any.
    """
    # Its functions have the group that there is when they are imported as a default, and would keep it.
    importlib.import_module("torch.distributed.nn.functional")
    # Python starts no thread any more when it ends.
    threading.Thread(target=_bound, name="leaving", daemon=True).start()
    atexit.register(_leave)


def leave_with(code: int) -> int:
    """The exit code of this process, should it have to end without its process groups; returns it."""
    global _code
    _code = code
    return code


def _bound() -> None:
    _leaving.wait()
    if _left.wait(LONGEST_S):
        return  # what else the program does at its end takes as long as it takes
    try:
        # What was written is on disk or in these two.
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # a reader may be gone
        os._exit(_code)


def _leave() -> None:
    # NCCL's threads hold no tensors of Python's, and to end its groups is an exchange: a peer may be gone.
    if not distributed.is_initialized() or distributed.get_backend() != "gloo":
        return
    _leaving.set()
    distributed.destroy_process_group()
    # A group's threads end with the last that refers to it: wrapped models do, and are parts of cycles.
    gc.collect()
    # So do meshes, which torch keeps among what it knows of operations on shares.
    for thing in gc.get_objects():
        if type(thing) is DeviceMesh:
            getattr(thing, "_pg_registry", {}).clear()  # torch before 2.11 has none
    _left.set()
