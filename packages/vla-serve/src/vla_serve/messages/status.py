"""gRPC status with ``google.rpc`` details, as both sides need it.

The details travel as a serialised ``google.rpc.Status`` in the trailing metadatum
``grpc-status-details-bin`` (the convention of all gRPC languages).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details_pb
from google.rpc import status_pb2
from vla_core.errors import UserError

from vla_serve.engine.errors import (
    DeadlinePassed,
    FieldError,
    NotServing,
    Refused,
    Superseded,
    WrongState,
)
from vla_serve.v1 import policy_pb2 as pb

_PATH = re.compile(
    r"(['\"`])(?:file://)?(?:~\w*|\.{1,2})?/[^'\"`]*\1"  # in quotes, blanks may be in it
    r"|(?<![\w.)\]/])(?:file://)?(?:~\w*|\.{1,2})?/(?=[\w.+@%~-]{2}|[\w.+@%~-]/)[^\s'\"`:;,()<>\[\]]*"
)
DOMAIN = "vla_serve"
KEY = "grpc-status-details-bin"

M = TypeVar("M", bound=Message)


class RpcFailure(Exception):
    """An error that a servicer wants its client to see."""

    def __init__(self, code: grpc.StatusCode, message: str, details: tuple[Message, ...] = ()) -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


def info(reason: str) -> Message:
    """An ``ErrorInfo`` whose reason a program can switch on."""
    return details_pb.ErrorInfo(reason=reason, domain=DOMAIN)


def invalid(field: str, description: str, reason: str = "INVALID_FIELD") -> RpcFailure:
    """INVALID_ARGUMENT that names a field."""
    violation = details_pb.BadRequest.FieldViolation(field=field, description=description)
    details = (details_pb.BadRequest(field_violations=[violation]), info(reason))
    return RpcFailure(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: {description}", details)


def mismatch(description: str) -> RpcFailure:
    """FAILED_PRECONDITION of a handshake; the description starts with the differing field."""
    subject = description.partition(": ")[0]
    violation = details_pb.PreconditionFailure.Violation(
        type="SPEC_MISMATCH", subject=subject, description=description
    )
    details = (details_pb.PreconditionFailure(violations=[violation]), info("SPEC_MISMATCH"))
    return RpcFailure(grpc.StatusCode.FAILED_PRECONDITION, description, details)


def unsupported(field: str, description: str) -> RpcFailure:
    """FAILED_PRECONDITION of a handshake that wants what the policy cannot do."""
    violation = details_pb.PreconditionFailure.Violation(
        type="UNSUPPORTED", subject=field, description=description
    )
    details = (details_pb.PreconditionFailure(violations=[violation]), info("UNSUPPORTED"))
    return RpcFailure(grpc.StatusCode.FAILED_PRECONDITION, f"{field}: {description}", details)


def from_engine(error: BaseException) -> RpcFailure | None:
    """An error of the engine in the words of gRPC; None: it is none of those that a client is told of."""
    codes = grpc.StatusCode
    if isinstance(error, FieldError):
        return invalid(error.field, error.description, error.reason)
    if isinstance(error, Refused):
        return _exhausted(str(error), error.reason, error.retry_after_s)
    if isinstance(error, DeadlinePassed):
        message = "the deadline passed before the model answered"
        return RpcFailure(codes.DEADLINE_EXCEEDED, message, (info("DEADLINE"),))
    if isinstance(error, Superseded):
        message = "a newer observation of the session took its place"
        return RpcFailure(codes.ABORTED, message, (info("SUPERSEDED"),))
    if isinstance(error, NotServing):
        return RpcFailure(codes.UNAVAILABLE, str(error), (info("NOT_SERVING"),))
    if isinstance(error, WrongState):
        return RpcFailure(codes.FAILED_PRECONDITION, str(error), (info("WRONG_STATE"),))
    if isinstance(error, UserError):
        return invalid("observation", without_paths(str(error)))
    return None


def without_paths(text: str, names: Collection[str] = ()) -> str:
    """A message for a client: where files lie on the server is none of its business.

    ``names``: those of the contract, which the client knows; ROS calls a camera ``/top``.
    """

    def hide(found: re.Match[str]) -> str:
        name = found[0].strip("'\"`").rstrip(".")
        return found[0] if name in names else "(a file of the server)"

    return _PATH.sub(hide, text)


def one_line(text: str) -> str:
    """For a log: what a client wrote cannot begin a line of its own."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _exhausted(message: str, reason: str, retry_after_s: float) -> RpcFailure:
    """RESOURCE_EXHAUSTED that says when to try again."""
    delay = Duration()
    delay.FromMilliseconds(max(1, round(retry_after_s * 1000)))
    details = (details_pb.RetryInfo(retry_delay=delay), info(reason))
    return RpcFailure(grpc.StatusCode.RESOURCE_EXHAUSTED, message, details)


def internal(request_id: str) -> RpcFailure:
    """INTERNAL that tells nothing but an id to look up in the server's log."""
    return RpcFailure(
        grpc.StatusCode.INTERNAL,
        f"the server failed; its log has the cause under id {request_id}",
        (details_pb.RequestInfo(request_id=request_id),),
    )


def too_large(size: int, limit: int) -> RpcFailure:
    """RESOURCE_EXHAUSTED without a time to come back, in gRPC's words for what it refuses by itself."""
    message = f"Received message larger than max ({size} vs. {limit})"
    return RpcFailure(grpc.StatusCode.RESOURCE_EXHAUSTED, message, (info("TOO_LARGE"),))


def _status_of(failure: RpcFailure) -> bytes:
    status = status_pb2.Status(code=failure.code.value[0], message=failure.message)
    for detail in failure.details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status.SerializeToString()


def failure_of(failure: RpcFailure) -> pb.Failure:
    """As an answer to one item of several."""
    return pb.Failure(code=failure.code.value[0], message=failure.message, status=_status_of(failure))


def to_wire(failure: RpcFailure) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata of a failure: its details, packed."""
    return ((KEY, _status_of(failure)),)


def details_of(error: Any) -> list[any_pb2.Any]:
    """Packed details of a received ``grpc.RpcError``; empty where there are none."""
    metadata: Sequence[tuple[str, Any]] = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == KEY:
            return unpacked(value)
    return []


def unpacked(status: bytes) -> list[any_pb2.Any]:
    """Packed details of a serialised ``google.rpc.Status``; empty where it is none."""
    try:
        return list(status_pb2.Status.FromString(status).details)
    except DecodeError:
        return []


def find(details: Sequence[any_pb2.Any], kind: type[M]) -> M | None:
    """The first detail of a kind."""
    for packed in details:
        message = kind()
        if packed.Unpack(message):  # False when it is of another kind
            return message
    return None
