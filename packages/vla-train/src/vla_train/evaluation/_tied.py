"""A program that is told to end when the one that started it has ended, be it by ``kill -9`` (Linux).

    python _tied.py PID_OF_WHO_STARTS_IT PROGRAM ARGUMENT...

It becomes the program. It imports the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Does not return."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("who started this has ended")  # before the line above
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
