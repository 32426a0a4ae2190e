"""The client's connection: options, TLS and token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from vla_core.errors import UserError

from vla_serve.host.tls_files import check_authority, check_pair, readable
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", -1),
    # A robot's link may drop silently: notice within seconds instead of at the deadline.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # And a server that is back is found within seconds, however long it was away: neither a pause between two
    # attempts nor an attempt itself (20 s without this, towards a host that answers nothing) is longer.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Each client is one robot: a connection of its own, not one shared through the process.
    ("grpc.use_local_subchannel_pool", 1),
)

_SERVICE = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
_PREDICT, _PREDICT_BATCH = f"/{_SERVICE}/Predict", f"/{_SERVICE}/PredictBatch"


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


class Connection:
    """A channel of its own with the methods of the service; it connects with the first call."""

    def __init__(self, address: str, tls: TLS | None) -> None:
        self._channel = _channel(address, tls)
        self.stub = PolicyServiceStub(self._channel)
        # Takes bytes: a large request is serialised once, also for the check of its size.
        self.predict: Any = self._channel.unary_unary(
            _PREDICT, request_serializer=bytes, response_deserializer=pb.PredictResponse.FromString
        )
        self.predict_batch: Any = self._channel.unary_unary(
            _PREDICT_BATCH, request_serializer=bytes, response_deserializer=pb.PredictBatchResponse.FromString
        )

    def close(self) -> None:
        """End it, and the calls under way."""
        self._channel.close()


def _channel(address: str, tls: TLS | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    if (tls.cert is None) != (tls.key is None):
        raise UserError("tls: a certificate needs its key")
    options = list(_OPTIONS)
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    if tls.cert is not None and tls.key is not None:
        check_pair(tls.cert, tls.key)
    if tls.ca is not None:
        check_authority(tls.ca, "tls_ca")
    given = ((tls.ca, "tls_ca"), (tls.key, "tls_key"), (tls.cert, "tls_cert"))
    files = [None if path is None else readable(path, option) for path, option in given]
    credentials = grpc.ssl_channel_credentials(*files)
    return grpc.secure_channel(address, credentials, options=options)
