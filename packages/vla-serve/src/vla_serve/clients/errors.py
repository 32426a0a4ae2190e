"""What a client call raises, and the mapping from gRPC status codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2 as details_pb
from vla_core.errors import SpecMismatch, UserError

from vla_serve.messages.status import details_of, find, unpacked
from vla_serve.v1 import policy_pb2 as pb


class PolicyClientError(UserError):
    """The request is wrong and would be wrong again: nothing is gained by a retry.

    Args:
        message: one line that names the field.
        fields: path of each bad field -> what is wrong with it.
    """

    def __init__(self, message: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}


class HandshakeError(PolicyClientError, SpecMismatch):
    """Client and policy disagree on cameras, state or actions, or the policy cannot do what is asked."""


class SessionLost(PolicyClientError):
    """The server does not know the session: it expired, was closed, or the server restarted."""


class PolicyServerError(RuntimeError):
    """The server could not answer; the message carries the id to look up in its log, if it gave one."""


class PolicyBusy(PolicyServerError):
    """Too many requests or sessions; try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PolicySuperseded(PolicyServerError):
    """A newer request of the session, which said so, took the place of this one in the queue."""


class PolicyTimeout(PolicyServerError, TimeoutError):
    """No answer before the deadline."""


class PolicyUnavailable(PolicyServerError, ConnectionError):
    """No server at the address, or one that is shutting down."""


_CUT_OFF = ("Socket closed", "Connection reset", "End of TCP stream")
_NO_GREETING = (
    "is vla-serve running there, and does it ask for TLS, or for a client's certificate that it knows and "
    "that is valid?"
)
_HINTS = (
    ("WRONG_VERSION_NUMBER", "is this a server without TLS?"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not of the authority that was given, or has expired"),
    ("Hostname Verification Check failed", "its certificate is of another name (--tls_server_name)"),
    ("before receiving SETTINGS", "vla-serve may still be loading there; wait for it"),
    ("connect() timed out", "vla-serve may still be loading there, or the address is wrong"),
    ("Stream removed", "the server ended meanwhile, or the connection was cut"),
    ("Cancelling all calls", "the server was stopped meanwhile"),
    *((words, _NO_GREETING) for words in _CUT_OFF),
)
"""Words of gRPC's for a connection that failed -> what that means."""


def from_rpc(error: Any, address: str) -> PolicyClientError | PolicyServerError:
    """The exception for a ``grpc.RpcError`` of a call to ``address``."""
    return _of(error.code(), error.details() or "", details_of(error), address)


def from_failure(failure: pb.Failure, address: str) -> PolicyClientError | PolicyServerError:
    """The exception for one item of several that has no answer."""
    code = next((c for c in grpc.StatusCode if c.value[0] == failure.code), grpc.StatusCode.UNKNOWN)
    return _of(code, failure.message, unpacked(failure.status), address)


def _of(
    code: grpc.StatusCode, text: str, details: Sequence[any_pb2.Any], address: str
) -> PolicyClientError | PolicyServerError:
    codes = grpc.StatusCode
    if code is codes.INVALID_ARGUMENT:
        bad = find(details, details_pb.BadRequest)
        fields = {v.field: v.description for v in bad.field_violations} if bad else {}
        info = find(details, details_pb.ErrorInfo)
        lost = info is not None and info.reason == "UNKNOWN_SESSION"
        return (SessionLost if lost else PolicyClientError)(text, fields)
    if code is codes.FAILED_PRECONDITION:
        failure = find(details, details_pb.PreconditionFailure)
        fields = {v.subject: v.description for v in failure.violations} if failure else {}
        return HandshakeError(text, fields)
    if code is codes.RESOURCE_EXHAUSTED:
        retry = find(details, details_pb.RetryInfo)
        if retry is not None:
            return PolicyBusy(text, retry.retry_delay.ToMilliseconds() / 1000)
        if "larger than max" in text:  # gRPC's own words, before any of our code runs
            return PolicyClientError(f"{text}; send smaller images, or raise the server's --max_message_mb")
        return PolicyBusy(f"{address}: {text}", 1.0)
    if code is codes.ABORTED:
        return PolicySuperseded(f"{address}: {text}")
    if code is codes.DEADLINE_EXCEEDED:
        return PolicyTimeout(f"{address}: no answer before the deadline ({text})")
    if code in (codes.UNAVAILABLE, codes.CANCELLED):
        if details:  # the server's own word: it is there
            return PolicyUnavailable(f"{address}: {text}")
        hint = next((hint for words, hint in _HINTS if words in text), "is vla-serve running there?")
        return PolicyUnavailable(f"{address}: {text}; {hint}")
    if code is codes.UNAUTHENTICATED:
        return PolicyClientError(f"token: {address}: {text}", {"token": text})
    if code is codes.UNIMPLEMENTED:
        return PolicyServerError(f"{address}: not a vla-serve server of this version ({text})")
    return PolicyServerError(f"{address}: {code.name}: {text}")
