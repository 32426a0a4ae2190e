"""A port that is reserved is for whoever names it, and for nobody else."""

from __future__ import annotations

import socket

import pytest
from vla_core.testing.ports import reserved_port


def test_who_names_it_may_listen() -> None:
    with reserved_port() as port:
        for _ in range(2):  # a server that is started anew, too
            with (
                socket.create_server(("127.0.0.1", port)) as server,
                socket.create_connection(("127.0.0.1", port)) as client,
                server.accept()[0] as answer,
            ):
                answer.sendall(b"here")
                assert client.recv(4) == b"here"


def test_before_and_after_it_nobody_is_there() -> None:
    with reserved_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_it_is_not_among_the_ports_that_the_system_gives() -> None:
    with reserved_port() as port, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))  # as the system asks itself before it gives a port
