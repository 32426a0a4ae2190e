"""The client's connection: options, TLS and token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from vla_core.errors import UserError

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", -1),
    # A robot's link may drop silently: notice within seconds instead of at the deadline.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # And a server that is back is found within seconds, however long it was away.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Each client is one robot: a connection of its own, not one shared through the process.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class TLS:
    """How a client knows its server, and what it shows.

    Args:
        ca: PEM file of the authority of the server's certificate; None: those that the system trusts.
        cert, key: PEM files, where the server asks for a client's certificate.
        server_name: in the server's certificate, where it is not the address.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None


def connect(address: str, tls: TLS | None) -> grpc.Channel:
    """A channel of its own; it connects with the first call."""
    if tls is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    if (tls.cert is None) != (tls.key is None):
        raise UserError("tls: a certificate needs its key")
    options = list(_OPTIONS)
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(_read(tls.ca), _read(tls.key), _read(tls.cert))
    return grpc.secure_channel(address, credentials, options=options)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"tls: {path} cannot be read ({error.strerror})") from None
