"""A port of this machine for a program that is yet to be started."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port(host: str = "127.0.0.1") -> Iterator[int]:
    """A block in which the system gives a port to nobody who asks for any.

    A port that was free a moment ago may be somebody's connection when the program gets to listen, seconds
    later on a busy machine. Here it stays bound without being listened to: whoever names it and sets
    ``SO_REUSEADDR``, as gRPC, torch, asyncio and ``socket.create_server`` do, may still listen.
    """
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind((host, 0))
        yield int(kept.getsockname()[1])
