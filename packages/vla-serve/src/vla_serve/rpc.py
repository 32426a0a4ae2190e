"""Around every RPC: who calls, how much at a time, what was sent, and what an error becomes."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from vla_serve.engine.admission import with_jitter
from vla_serve.engine.boundary import Boundary
from vla_serve.engine.errors import ModelFailed, Refused
from vla_serve.status import RpcFailure, from_engine, info, internal, invalid, one_line, to_wire

log = logging.getLogger("vla_serve.server")

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class RpcLimits:
    """What one connection, and all together, may have under way.

    Args:
        max_in_flight: requests of one connection.
        max_in_flight_bytes: of the requests of all connections.
        body_timeout_s: a body must have arrived after so long.
        token: that every call must bring, or None.
    """

    max_in_flight: int = 64
    max_in_flight_bytes: int = 256 * 2**20
    body_timeout_s: float = 10.0
    token: str | None = None


class Rpcs:
    """Wraps the methods of a service as gRPC handlers.

    Requests are read here and not by gRPC: a stream that never sends its body costs a waiting coroutine until
    its time is over, and bytes that are no message are the client's mistake and no traceback.
    """

    def __init__(self, limits: RpcLimits) -> None:
        self._limits = limits
        self._in_flight: Counter[str] = Counter()
        self._bytes = 0

    @property
    def in_flight(self) -> int:
        """RPCs under way that a stop waits for."""
        return self._in_flight.total()

    def unary(
        self, kind: type[M], method: Callable[[M, Any], Awaitable[Message]], counted: bool = True
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler for one request and one reply; ``counted``: among those in flight."""

        async def handle(requests: AsyncIterator[bytes], context: Any) -> bytes:
            async with self._boundary(context, method.__name__):
                self._authenticate(context)
                async with self._slot(context, counted) as slot:
                    message = await self._read(kind, requests, slot)
                    return (await method(message, context)).SerializeToString()
            raise AssertionError("an error ends the call")

        return grpc.stream_unary_rpc_method_handler(handle)

    def stream(
        self, kind: type[M], method: Callable[[M, Any], AsyncIterator[Message]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler for one request and a stream of replies, which a stop does not wait for."""

        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async with self._boundary(context, method.__name__):
                self._authenticate(context)
                async with self._slot(context, counted=False) as slot:
                    message = await self._read(kind, requests, slot)
                    async for reply in method(message, context):
                        yield reply.SerializeToString()

        return grpc.stream_stream_rpc_method_handler(handle)

    @asynccontextmanager
    async def _boundary(self, context: Any, rpc: str) -> AsyncIterator[None]:
        """Turn whatever leaves an RPC into a status; only an id of an unexpected error gets out."""
        with Boundary() as call:
            yield
        error = call.error
        if error is None:
            return
        failure = error if isinstance(error, RpcFailure) else from_engine(error)
        if failure is None:
            request_id = secrets.token_hex(8)
            cause = error.__cause__ if isinstance(error, ModelFailed) else error
            log.error("%s failed id=%s", rpc, request_id, exc_info=cause)
            failure = internal(request_id)
            await context.abort(failure.code, failure.message, to_wire(failure))
        log.info("%s refused: %s: %s", rpc, failure.code.name, one_line(failure.message))
        await context.abort(failure.code, failure.message, to_wire(failure))

    def _authenticate(self, context: Any) -> None:
        token = self._limits.token
        if token is None:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not hmac.compare_digest(str(given).encode(), f"Bearer {token}".encode()):
            message = "the call has no token of this server's, or a wrong one"
            raise RpcFailure(grpc.StatusCode.UNAUTHENTICATED, message, (info("UNAUTHENTICATED"),))

    @asynccontextmanager
    async def _slot(self, context: Any, counted: bool) -> AsyncIterator[list[int]]:
        """A place among the connection's requests; yields the bytes that it accounts for."""
        peer, limit = context.peer(), self._limits.max_in_flight
        if counted and self._in_flight[peer] >= limit:
            message = f"{limit} requests of this connection are under way (--max_in_flight)"
            raise Refused(message, "TOO_MANY_IN_FLIGHT", with_jitter(0.1))
        held = [0]
        if counted:
            self._in_flight[peer] += 1
        try:
            yield held
        finally:
            self._bytes -= held[0]
            if counted:
                self._in_flight[peer] -= 1
                if not self._in_flight[peer]:
                    del self._in_flight[peer]

    async def _read(self, kind: type[M], requests: AsyncIterator[bytes], held: list[int]) -> M:
        try:
            data = await asyncio.wait_for(anext(requests), self._limits.body_timeout_s)
        except StopAsyncIteration:
            raise invalid("request", f"no {kind.DESCRIPTOR.full_name} was sent") from None
        except asyncio.TimeoutError:
            message = f"the request's body did not arrive within {self._limits.body_timeout_s:g} s"
            raise RpcFailure(grpc.StatusCode.DEADLINE_EXCEEDED, message, (info("BODY_TIMEOUT"),)) from None
        limit = self._limits.max_in_flight_bytes
        if self._bytes and self._bytes + len(data) > limit:
            message = f"requests of {limit >> 20} MiB are under way (--max_in_flight_mb)"
            raise Refused(message, "TOO_MANY_BYTES", with_jitter(0.1))
        held[0] = len(data)
        self._bytes += len(data)
        try:
            return kind.FromString(data)
        except DecodeError:
            raise invalid("request", f"the bytes are no {kind.DESCRIPTOR.full_name}", "MALFORMED") from None
