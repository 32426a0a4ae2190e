"""Threads of lowest priority that spin, one a core, until standard input ends.

    python _idle_spin.py CORE...

:mod:`vla_serve.host.idle_poll` starts it. It says ``ready``, or in a line why it cannot. It imports the
standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading


def main(cores: list[int]) -> None:
    """Spin; does not return."""
    os.setpgrp()  # an interrupt from the keyboard is the server's to answer, which then ends this
    libc, lock = ctypes.CDLL(None), ctypes.c_int()
    libc.pthread_spin_init(ctypes.byref(lock), 0)
    libc.pthread_spin_lock(ctypes.byref(lock))
    try:
        for core in cores:
            # Waits for ever for a lock that nobody gives back: with the processor's instruction for that,
            # which leaves its other thread alone, and without the interpreter's lock.
            thread = threading.Thread(target=libc.pthread_spin_lock, args=(ctypes.byref(lock),), daemon=True)
            thread.start()
            assert thread.native_id is not None
            os.sched_setaffinity(thread.native_id, {core})
            os.sched_setscheduler(thread.native_id, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        os.write(1, f"SCHED_IDLE on core {core} is refused ({error.strerror})\n".encode())
        os._exit(1)
    os.write(1, b"ready\n")
    os.read(0, 1)
    os._exit(0)  # the threads never come back


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
