"""Process groups end before the interpreter does.

A thread of gloo's keeps the tensors of an exchange a moment longer than the call that waits for it. Where
it lets go of them only once the interpreter has begun to end, it cannot have the interpreter's lock any more,
and torch 2.11 aborts: a rank that did all its work dies of SIGABRT. So the groups go first, and with them
their threads, which have then let go of everything.
"""

from __future__ import annotations

import atexit
import gc
import importlib
from functools import cache

from torch import distributed
from torch.distributed.device_mesh import DeviceMesh


@cache
def leave_in_order() -> None:
    """Have this process give up its process groups as the first thing when it ends, where they are gloo's.

    Called before there are any.
    """
    # Its functions have the group that there is when they are imported as a default, and would keep it.
    importlib.import_module("torch.distributed.nn.functional")
    atexit.register(_leave)


def _leave() -> None:
    # NCCL's threads hold no tensors of Python's, and to end its groups is an exchange: a peer may be gone.
    if not distributed.is_initialized() or distributed.get_backend() != "gloo":
        return
    distributed.destroy_process_group()
    # A group's threads end with the last that refers to it: wrapped models do, and are parts of cycles.
    gc.collect()
    # So do meshes, which torch keeps among what it knows of operations on shares.
    for thing in gc.get_objects():
        if type(thing) is DeviceMesh:
            getattr(thing, "_pg_registry", {}).clear()  # torch before 2.11 has none
