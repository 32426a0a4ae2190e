"""Several chunks by one RPC: a batch whose items are answered one by one, and a stream of observations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack
from dataclasses import replace

from vla_serve.engine.boundary import Boundary
from vla_serve.engine.errors import FieldError
from vla_serve.engine.sessions import Sessions
from vla_serve.messages.status import failure_of, invalid
from vla_serve.rpcs.predicting import Caller, Predictor
from vla_serve.rpcs.rpc import Rpcs
from vla_serve.v1 import policy_pb2 as pb

REPLY_SHARE = 0.05
"""Of a batch's time, kept for its reply: what was answered should not be lost to what was not."""

UNSENT = 16
"""Answers that wait for a slow reader of a stream; beyond that, nothing more is read from it."""


async def answer_all(
    predictor: Predictor, rpcs: Rpcs, request: pb.PredictBatchRequest, caller: Caller
) -> pb.PredictBatchResponse:
    """Every item answered or refused on its own."""
    if caller.deadline is not None:
        spare = REPLY_SHARE * (caller.deadline - caller.arrived)
        caller = replace(caller, deadline=caller.deadline - spare)

    async def one(number: int, item: pb.PredictRequest) -> pb.PredictBatchResult:
        own = replace(caller, request_id=f"{caller.request_id}.{number}")
        with Boundary() as call:
            session = predictor.session(item.session_id or request.session_id, own)
            return pb.PredictBatchResult(answer=await predictor(item, own, session))
        return pb.PredictBatchResult(failure=_failure(rpcs, call.error, "PredictBatch.item", own))

    results = await asyncio.gather(*(one(number, item) for number, item in enumerate(request.items)))
    return pb.PredictBatchResponse(results=results)


def _failure(rpcs: Rpcs, error: BaseException | None, rpc: str, caller: Caller) -> pb.Failure:
    assert error is not None
    return failure_of(rpcs.explain(error, rpc, caller.request_id))


async def stream_answers(
    predictor: Predictor,
    rpcs: Rpcs,
    sessions: Sessions,
    requests: AsyncIterator[pb.StreamActionsRequest],
    caller: Caller,
    peer: str,
) -> AsyncGenerator[pb.StreamActionsResponse, None]:
    """Answers as they are ready, until the client has no more messages."""
    first = await anext(requests, None)
    if first is None or not first.session_id:
        raise invalid("session_id", "missing; the first message of a stream names its session")
    with sessions.hold(first.session_id, caller.owner):
        stream = _Stream(predictor, rpcs, first.session_id, caller, peer)
        reader = asyncio.create_task(stream.read(first, requests))
        try:
            while (response := await stream.next()) is not None:
                yield response
        finally:
            reader.cancel()
            stream.cancel()


class _Stream:
    def __init__(self, predictor: Predictor, rpcs: Rpcs, session_id: str, caller: Caller, peer: str) -> None:
        self._predictor, self._rpcs, self._peer = predictor, rpcs, peer
        self._session, self._caller = session_id, caller
        self._out: asyncio.Queue[pb.StreamActionsResponse | BaseException | None] = asyncio.Queue(UNSENT)
        self._tasks: set[asyncio.Task[None]] = set()

    async def next(self) -> pb.StreamActionsResponse | None:
        """The next response; None: all are sent."""
        response = await self._out.get()
        if isinstance(response, BaseException):
            raise response
        return response

    def cancel(self) -> None:
        """Nobody waits any more."""
        for task in self._tasks:
            task.cancel()

    async def read(
        self, first: pb.StreamActionsRequest, requests: AsyncIterator[pb.StreamActionsRequest]
    ) -> None:
        """Take every message; then wait for the answers."""
        with Boundary() as reading:
            await self._take(first)
            async for message in requests:
                await self._take(message)
            while self._tasks:
                await asyncio.wait(self._tasks)
        await self._out.put(reading.error)

    async def _take(self, message: pb.StreamActionsRequest) -> None:
        caller = self._caller_of(message)
        with Boundary() as taking, ExitStack() as undo:
            self._check(message)
            kind = message.WhichOneof("content")
            if kind == "executed":
                session = self._predictor.session(self._session, caller)
                self._predictor.executed(message.executed, session)
            elif kind == "observation":
                place = undo.enter_context(self._rpcs.place(self._peer))
                place.take(message.ByteSize())
                place.take_pixels(self._predictor.pixels(message.observation))
                task = asyncio.create_task(self._answer(message, caller))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                # Not in the task: one that is cancelled before its first step does nothing at all.
                held = undo.pop_all()
                task.add_done_callback(lambda _: held.close())
        if taking.error is not None:
            await self._fail(message, taking.error, caller)

    def _caller_of(self, message: pb.StreamActionsRequest) -> Caller:
        now = time.monotonic()
        ends = [] if self._caller.deadline is None else [self._caller.deadline]
        if message.timeout_s > 0:
            ends.append(now + message.timeout_s)
        name = f"{self._caller.request_id}.{message.request_id}"
        return Caller(self._caller.owner, name, now, min(ends, default=None))

    def _check(self, message: pb.StreamActionsRequest) -> None:
        for field, value in (
            ("session_id", message.session_id),
            ("observation.session_id", message.observation.session_id),
        ):
            if value not in ("", self._session):
                raise FieldError(field, "a stream is of one session, that of its first message")
        if not 0 <= message.timeout_s < float("inf"):
            raise FieldError("timeout_s", f"{message.timeout_s} is no time")

    async def _answer(self, message: pb.StreamActionsRequest, caller: Caller) -> None:
        with Boundary() as call:
            session = self._predictor.session(self._session, caller)
            answer = await self._predictor(message.observation, caller, session)
            await self._out.put(pb.StreamActionsResponse(request_id=message.request_id, answer=answer))
        if call.error is not None:
            await self._fail(message, call.error, caller)

    async def _fail(self, message: pb.StreamActionsRequest, error: BaseException, caller: Caller) -> None:
        failure = _failure(self._rpcs, error, "StreamActions.item", caller)
        await self._out.put(pb.StreamActionsResponse(request_id=message.request_id, failure=failure))
