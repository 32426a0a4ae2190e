"""Around every RPC: who calls, how much at a time, what was sent, and what an error becomes."""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from hashlib import sha256
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from vla_serve.engine.boundary import Boundary, without_frames
from vla_serve.engine.errors import DeadlinePassed, ModelFailed, Refused, Superseded
from vla_serve.messages.status import (
    RpcFailure,
    from_engine,
    info,
    internal,
    invalid,
    one_line,
    to_wire,
    too_large,
)
from vla_serve.observability.logs import request_id, take_request_id
from vla_serve.observability.watching import Watcher
from vla_serve.rpcs.in_flight import InFlight, Place
from vla_serve.rpcs.predicting import Caller

log = logging.getLogger("vla_serve.server")

M = TypeVar("M", bound=Message)

_aio: Any = grpc.aio  # its stubs lack some of it
_EOF: object = _aio.EOF


class _Call(Boundary):
    """One RPC. Whatever leaves it becomes a :attr:`status`; only an id of an unexpected error gets out."""

    def __init__(self, rpcs: Rpcs, watcher: Watcher, context: Any, rpc: str) -> None:
        super().__init__()
        self._rpcs, self._watcher, self._rpc = rpcs, watcher, rpc
        self.status: Any = None
        """Code, message and trailing metadata; None: it went well."""
        metadata = context.invocation_metadata() or ()
        self._name = take_request_id(metadata)
        watcher.began(rpc, self._name, metadata)

    def __enter__(self) -> _Call:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Explain the error, if it is one, and keep nothing of it."""
        kept = super().__exit__(kind, error, trace)
        self.error = None
        try:
            if kept and error is not None:
                failure = self._rpcs.explain(error, self._rpc, self._name)
                self.status = (failure.code, failure.message, to_wire(failure))
            elif kind is None:
                self._watcher.called(self._rpc, "OK")
        finally:
            self._watcher.ended(self._rpc)
        return kept


class Rpcs:
    """Wraps the methods of a service as gRPC handlers.

    Requests are read here and not by gRPC: a stream that never sends its body costs a waiting coroutine until
    its time is over, and bytes that are no message are the client's mistake and no traceback.
    """

    def __init__(self, in_flight: InFlight, watcher: Watcher | None = None) -> None:
        self._limits, self._watcher = in_flight.limits, watcher or Watcher()
        self.place = in_flight.place
        """See :meth:`InFlight.place <vla_serve.rpcs.in_flight.InFlight.place>`."""

    def unary(
        self,
        kind: type[M],
        method: Callable[[M, Any], Awaitable[Message]],
        counted: bool = True,
        limit: int | None = None,
        pixels: Callable[[M], int] | None = None,
        unread: Callable[[float, str], None] | None = None,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler for one request and one reply.

        ``counted``: among those in flight; ``limit``: most bytes of the request; ``pixels``: of its pictures;
        ``unread``: told the seconds until the deadline, and by which connection, before the body is read; it
        may raise.
        """

        async def answer(context: Any) -> bytes:
            self._authenticate(context)
            if unread is not None and (left := context.time_remaining()) is not None:
                unread(left, context.peer())
            with self.place(context.peer(), counted) as place:
                message = await self._read(kind, context, place, limit)
                if pixels is not None:
                    place.take_pixels(pixels(message))
                return (await method(message, context)).SerializeToString()

        async def handle(requests: AsyncIterator[bytes], context: Any) -> bytes:
            with self._call(context, method.__name__) as call:
                return await answer(context)
            # gRPC keeps the error that this raises, and with it this frame: no message is in it.
            await context.abort(*call.status)
            raise AssertionError("an abort ends the call")

        return grpc.stream_unary_rpc_method_handler(handle)

    def stream(
        self, kind: type[M], method: Callable[[M, Any], AsyncIterator[Message]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler for one request and a stream of replies, which a stop does not wait for."""

        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            with self._call(context, method.__name__) as call:
                self._authenticate(context)
                with self.place(context.peer(), counted=False) as place:
                    message = await self._read(kind, context, place, None)
                async for reply in method(message, context):
                    yield reply.SerializeToString()
            if call.status is not None:
                await context.abort(*call.status)

        return grpc.stream_stream_rpc_method_handler(handle)

    def duplex(
        self,
        kind: type[M],
        method: Callable[[AsyncIterator[M], Any], AsyncGenerator[Message, None]],
        limit: int | None = None,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler for two streams; its method accounts for what is under way (:meth:`place`)."""

        async def messages(context: Any) -> AsyncIterator[M]:
            data = await self._body(kind, context)
            while data is not _EOF:
                yield _parse(kind, data, limit)
                data = await context.read()

        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            with self._call(context, method.__name__) as call:
                self._authenticate(context)
                async with aclosing(method(messages(context), context)) as replies:
                    async for reply in replies:
                        yield reply.SerializeToString()
            if call.status is not None:
                await context.abort(*call.status)

        return grpc.stream_stream_rpc_method_handler(handle)

    def _call(self, context: Any, rpc: str) -> _Call:
        return _Call(self, self._watcher, context, rpc)

    def explain(self, error: BaseException, rpc: str, name: str) -> RpcFailure:
        """What a client is told of an error in the request ``name``; the log is told the rest."""
        failure = error if isinstance(error, RpcFailure) else from_engine(error)
        if failure is None:
            cause = error.__cause__ if isinstance(error, ModelFailed) else error
            log.error("%s failed id=%s", rpc, name, exc_info=cause)
            failure = internal(name)
        else:
            # Under load these come by the hundred a second; metrics count them.
            often = isinstance(error, (Refused, DeadlinePassed, Superseded))
            level = logging.DEBUG if often else logging.INFO
            log.log(
                level, "%s refused id=%s: %s: %s", rpc, name, failure.code.name, one_line(failure.message)
            )
        without_frames(error)
        self._watcher.called(rpc, failure.code.name)
        return failure

    def _authenticate(self, context: Any) -> None:
        token = self._limits.token
        if token is None:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not hmac.compare_digest(str(given).encode(), f"Bearer {token}".encode()):
            message = "the call has no token of this server's, or a wrong one"
            raise RpcFailure(grpc.StatusCode.UNAUTHENTICATED, message, (info("UNAUTHENTICATED"),))

    async def _body(self, kind: type[M], context: Any) -> bytes:
        # Not by the iterator that gRPC gives too: one that is not read to its end is closed by a task of the
        # loop, after each call.
        try:
            data = await asyncio.wait_for(context.read(), self._limits.body_timeout_s)
        except asyncio.TimeoutError:
            message = f"the request's body did not arrive within {self._limits.body_timeout_s:g} s"
            raise RpcFailure(grpc.StatusCode.DEADLINE_EXCEEDED, message, (info("BODY_TIMEOUT"),)) from None
        if data is _EOF:
            raise invalid("request", f"no {kind.DESCRIPTOR.full_name} was sent")
        return data

    async def _read(self, kind: type[M], context: Any, place: Place, limit: int | None) -> M:
        data = await self._body(kind, context)
        place.take(len(data))
        return _parse(kind, data, limit)


def _parse(kind: type[M], data: bytes, limit: int | None) -> M:
    if limit is not None and len(data) > limit:
        raise too_large(len(data), limit)
    try:
        return kind.FromString(data)
    except DecodeError:
        raise invalid("request", f"the bytes are no {kind.DESCRIPTOR.full_name}", "MALFORMED") from None


def owner_of(context: Any) -> str:
    """Who calls, where the connection proves it: the digest of the client's certificate.

    Not its names: an authority may give two robots the same ones, or none.
    """
    certificates = context.auth_context().get("x509_pem_cert", ())
    return sha256(b"".join(certificates)).hexdigest() if certificates else ""


def caller_of(context: Any) -> Caller:
    """Who calls, and until when the answer is of use."""
    now, remaining = time.monotonic(), context.time_remaining()
    if remaining is not None and remaining > threading.TIMEOUT_MAX:
        remaining = None  # a client without deadline: gRPC says some centuries
    deadline = None if remaining is None else now + remaining
    return Caller(owner_of(context), request_id(), now, deadline)
