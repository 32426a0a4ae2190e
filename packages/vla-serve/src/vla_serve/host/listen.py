"""Where a server listens, found out before anything else, and who may reach it there."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from vla_core.errors import UserError

from vla_serve.clients.arguments import within
from vla_serve.host.tls_files import check_authority, check_pair, readable

LOCAL = "127.0.0.1"
"""This machine alone."""

IDLE_S = 60.0
"""A connection on which nothing is under way is closed after so long; a client's next call makes another."""


@dataclass(frozen=True)
class Security:
    """What a caller must show.

    Args:
        cert, key: PEM files of the server's certificate chain and key; both or neither.
        client_ca: PEM file; clients must have a certificate of this authority (mutual TLS).
        token: every call must bring it.
        insecure: an address that others can reach needs none of that.
        options: what the program calls certificate, key, token and authority, for errors.
    """

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    token: str | None = None
    insecure: bool = False
    options: tuple[str, str, str, str] = ("tls_cert", "tls_key", "token_file", "tls_client_ca")

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise UserError(f"tls: a certificate needs its key (--{self.options[0]}, --{self.options[1]})")
        if self.client_ca is not None and self.cert is None:
            cert, key, _, authority = self.options
            raise UserError(f"tls: --{authority} needs --{cert} and --{key}")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token):
            raise UserError("token: must be one line of printable ASCII")

    def check(self, addresses: Sequence[str]) -> None:
        """Raise :class:`UserError` for addresses that others can reach, without a way to know who calls.

        And for files that are no certificates or keys: gRPC would say so late, as of a taken port.
        """
        open_ones = _reachable(addresses)
        if open_ones and not self._knows_callers and not self.insecure:
            cert, key, token, authority = self.options
            raise UserError(
                f"host: others can reach {', '.join(open_ones)}; give --{cert} and --{key} with "
                f"--{token} or --{authority}, or say --insecure"
            )
        if self.cert is not None and self.key is not None:
            check_pair(self.cert, self.key, self.options[:2])
        if self.client_ca is not None:
            check_authority(self.client_ca, self.options[3])

    @property
    def _knows_callers(self) -> bool:
        return self.cert is not None and (self.token is not None or self.client_ca is not None)

    def warning(self, addresses: Sequence[str]) -> str:
        """What ``insecure`` lets others do at these addresses; empty: nothing."""
        where = ", ".join(_reachable(addresses))
        if not where or self._knows_callers:
            return ""
        if self.token is not None:
            return f"insecure: the token travels in the clear to {where}; whoever listens can use the policy"
        if self.cert is not None:
            return f"insecure: whoever reaches {where} can use the policy"
        return f"insecure: whoever reaches {where} can use the policy, and listen to those who do"

    def credentials(self) -> grpc.ServerCredentials | None:
        """For gRPC; None: no TLS."""
        if self.cert is None or self.key is None:
            return None
        pair = (readable(self.key, "tls_key"), readable(self.cert, "tls_cert"))
        ca = None if self.client_ca is None else readable(self.client_ca, "tls_client_ca")
        return grpc.ssl_server_credentials([pair], ca, ca is not None)


def _reachable(addresses: Sequence[str]) -> list[str]:
    """Those of ``addresses`` that others than this machine can reach."""
    return [a for a in addresses if not ipaddress.ip_address(a.partition("%")[0]).is_loopback]


def own_token(path: Path) -> str:
    """The token in a file of this account alone; where there is no file, one with a new token is written.

    Raises:
        UserError: it cannot be read or written, or other accounts may read it.
    """
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.token_urlsafe(32)}\n")
    except FileExistsError:
        if path.is_dir():
            raise UserError(f"admin_token_file: {path} is a directory; name a file") from None
        if path.stat().st_mode & 0o077:
            raise UserError(f"admin_token_file: {path} is open to other accounts; chmod 600 it") from None
    except OSError as error:
        raise UserError(f"admin_token_file: {path}: {error.strerror}") from None
    return read_token(path)


def read_token(path: Path, option: str = "token_file") -> str:
    """The token in a file; :class:`UserError` when there is none."""
    token = readable(path, option).decode("ascii", "replace").strip()
    if not token:
        raise UserError(f"{option}: {path} is empty")
    return token


class Reservation:
    """The addresses of a host name with one port, kept from others until a server takes them.

    Args:
        host: name or address; a name is all its addresses (``localhost``: IPv4 and IPv6).
        port: 0: a free one.
        option: what the port is called in errors.

    Raises:
        UserError: no such host, not an address of this machine, or a port that is taken or none.
    """

    def __init__(self, host: str, port: int, option: str = "port") -> None:
        within(option, port, 0, 65535)
        self.host = host
        self._sockets: list[socket.socket] = []
        self.addresses: list[str] = []
        found = _resolve(host)
        self.port = port
        for family, address in found:
            try:
                self._bind(family, address)
            except OSError as error:
                # A name may have an address of a family that is switched off here.
                if self._sockets and error.errno not in _TAKEN:
                    continue
                last = (family, address) == found[-1]
                if not last and error.errno not in _TAKEN:
                    continue
                self.release()
                raise UserError(why_not(host, address, port, error, option)) from None

    def _bind(self, family: socket.AddressFamily, address: str) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            # As gRPC does: connections of a server before that still linger keep nobody out.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, self.port))
            # Linux lets two bind with SO_REUSEADDR as long as neither listens.
            sock.listen(0)
        except OSError:
            sock.close()
            raise
        self._sockets.append(sock)
        self.addresses.append(address)
        self.port = sock.getsockname()[1]

    def targets(self) -> list[str]:
        """``address:port`` of each, as gRPC writes them."""
        return [f"[{a}]:{self.port}" if ":" in a else f"{a}:{self.port}" for a in self.addresses]

    def release(self) -> None:
        """Let go, for the server to take over."""
        for sock in self._sockets:
            with suppress(OSError):
                sock.close()
        self._sockets = []


def channel_options(max_bytes: int, max_streams: int, handshake_s: float = 10.0) -> list[tuple[str, int]]:
    """Of a server, for gRPC.

    Args:
        max_bytes: largest message.
        max_streams: most calls of a connection.
        handshake_s: a connection must have said by then that it is one of HTTP/2 (and TLS).
    """
    return [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", -1),
        # Two servers that share a port in silence would each answer half of the requests.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", max_streams),
        # A robot that lost its power closes no connection: ask whether it is there.
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        # Without it a ping waits a minute for its answer, whatever the line before says.
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.max_connection_idle_ms", int(1000 * IDLE_S)),
        # By default a connection that says nothing stays for two minutes.
        ("grpc.server_handshake_timeout_ms", max(1, int(1000 * min(handshake_s, 120.0)))),
    ]


def open_ports(
    server: grpc.aio.Server, reservation: Reservation, credentials: grpc.ServerCredentials | None
) -> None:
    """Let a server take over what was reserved.

    Raises:
        UserError: something else was faster.
    """
    reservation.release()
    for target in reservation.targets():
        try:
            if credentials is None:
                server.add_insecure_port(target)
            else:
                server.add_secure_port(target, credentials)
        except RuntimeError:
            raise UserError(f"cannot listen on {target}; something took it this moment") from None


_TAKEN = (98, 48, 10048)  # EADDRINUSE of Linux, macOS, Windows


def _resolve(host: str) -> list[tuple[socket.AddressFamily, str]]:
    if not host or host == "*":
        raise UserError("host: empty; say 127.0.0.1 for this machine alone, 0.0.0.0 or :: for all")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UserError(f"host: '{host}' is no name or address that is known here") from None
    unique = dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found)
    return [(family, address) for family, address in unique]


def why_not(host: str, address: str, port: int, error: OSError, option: str) -> str:
    """Why nothing can listen there, and what to do."""
    where = host if host == address else f"{host} ({address})"
    if error.errno in _TAKEN:
        return f"{option}: {port} of {where} is taken; choose another (0: a free one)"
    if error.errno == 13:
        return f"{option}: {port} of {where} is not allowed; choose one above 1023"
    return f"host: {where} is no address of this machine ({error.strerror})"
