"""The client for asyncio: the same session, arguments and errors. Shapes: T action steps, A action dims."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
from vla_core.errors import UserError
from vla_core.specs import RobotSpec
from vla_core.types import Observation

from vla_serve.clients.batch import BatchSession, Difference, Results
from vla_serve.clients.chunks import Continuation, ServedChunk
from vla_serve.clients.errors import PolicyClientError, PolicyServerError, PolicyUnavailable
from vla_serve.messages.spec_codec import decode_spec
from vla_serve.v1 import policy_pb2 as pb


class AsyncPolicyClient(BatchSession):
    """One session with a policy server, for asyncio; see :class:`PolicyClient` for arguments and errors.

    An asynchronous context manager. Several requests may be under way at once, of one observation each: the
    server batches them. A cancelled task takes its request back. All use is from one event loop; a process
    may have clients in any number of loops, beside a server too, which gRPC's own asyncio side cannot do.
    """

    _opening: asyncio.Lock | None = None

    async def __aenter__(self) -> AsyncPolicyClient:
        try:
            await self.open()
        except (UserError, PolicyServerError):
            self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """As :meth:`PolicyClient.wait_ready`."""
        await self._call(self._connection.stub.GetServerInfo, pb.GetServerInfoRequest(), timeout_s, wait=True)

    async def server_info(self) -> pb.GetServerInfoResponse:
        """As :meth:`PolicyClient.server_info`."""
        return await self._call(self._connection.stub.GetServerInfo, pb.GetServerInfoRequest())

    async def policy_contract(self) -> RobotSpec:
        """As :meth:`PolicyClient.policy_contract`."""
        config = self._config
        request = pb.GetPolicyContractRequest(policy=config.policy, embodiment=config.embodiment)
        return decode_spec((await self._call(self._connection.stub.GetPolicyContract, request)).contract)

    async def check_compatibility(self) -> list[Difference]:
        """As :meth:`PolicyClient.check_compatibility`."""
        request = pb.CheckCompatibilityRequest(config=self._config)
        return self._differences(await self._call(self._connection.stub.CheckCompatibility, request))

    async def open(self) -> None:
        """As :meth:`PolicyClient.open`."""
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:  # two tasks that ask at once have one session
            if self._session is None or self._lost:
                request = pb.OpenSessionRequest(config=self._config)
                self._opened(await self._call(self._connection.stub.OpenSession, request))

    async def reset(self, instruction: str | None = None) -> None:
        """As :meth:`PolicyClient.reset`."""
        request = self._reset_request(instruction)
        await self._call(self._connection.stub.ResetSession, request)
        self._instruction = request.instruction

    async def predict(
        self,
        observation: Observation,
        seed: int | None = None,
        timeout_s: float | None = None,
        *,
        step: int | None = None,
        denoise_steps: int | None = None,
        previous: Continuation | None = None,
        view_keys: Mapping[str, str] | None = None,
        supersedes: bool = False,
    ) -> ServedChunk:
        """As :meth:`PolicyClient.predict`."""
        start = time.perf_counter()
        what = (observation, seed, step, denoise_steps, previous, view_keys, supersedes)
        if self._encoding == "raw":
            data = self._predict_request(*what)
        else:  # milliseconds that the loop has for others
            data = await asyncio.to_thread(self._predict_request, *what)
        self._stay()
        reply = await self._call(self._connection.predict, data, timeout_s)
        return self._answer(reply, previous, (time.perf_counter() - start) * 1000)

    async def predict_batch(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int] | None = None,
        timeout_s: float | None = None,
        *,
        steps: Sequence[int] | None = None,
        denoise_steps: int | None = None,
    ) -> Results:
        """As :meth:`PolicyClient.predict_batch`."""
        deadline = self._deadline(timeout_s)
        end = time.monotonic() + deadline
        results, items = await asyncio.to_thread(self._items, observations, seeds, steps, denoise_steps)
        self._stay()
        for wave in self._waves(items, self._limits or self._known_limits(await self.server_info())):
            calls = [(call, self._send(call, end)) for call in wave]
            try:
                for call, future in calls:
                    self._receive(results, call, await self._result(future, deadline))
            finally:
                for _, future in calls:
                    future.cancel()
        return results

    async def close(self) -> None:
        """As :meth:`PolicyClient.close`."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(PolicyClientError, PolicyServerError):
                request = pb.CloseSessionRequest(session_id=session)
                await self._call(self._connection.stub.CloseSession, request, 2.0)
        self._leave()

    async def _call(
        self, method: Any, request: Any, timeout_s: float | None = None, wait: bool = False
    ) -> Any:
        deadline = self._deadline(timeout_s)
        call = method.future(request, timeout=deadline, wait_for_ready=wait, metadata=self._metadata)
        return await self._result(call, deadline, wait)

    async def _result(self, call: Any, deadline_s: float, waited: bool = False) -> Any:
        await _finished(call)
        try:
            return call.result()
        except grpc.RpcError as error:
            raise self._failure(error, deadline_s, waited) from None
        except grpc.FutureCancelledError:
            raise PolicyUnavailable(f"{self._address}: the client was closed meanwhile") from None


async def _finished(call: Any) -> None:
    """Until a call is over; cancelled with the task that waits for it."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def tell(_: Any) -> None:  # from a thread of gRPC's
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(over.set)

    call.add_done_callback(tell)
    try:
        await over.wait()
    except asyncio.CancelledError:
        call.cancel()
        raise
