"""A gRPC server around a policy: life cycle only, the RPCs are in :mod:`vla_serve.service`."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]
from vla_core.errors import UserError

from vla_serve._loop import run
from vla_serve.engine.engine import Engine
from vla_serve.engine.policy import ActingPolicy, Policy
from vla_serve.engine.sessions import Sessions
from vla_serve.listen import Reservation, Security
from vla_serve.message_size import largest_request
from vla_serve.predict_request import MAX_DENOISE_STEPS
from vla_serve.rpc import RpcLimits, Rpcs
from vla_serve.service import SERVICE, PolicyService, ServiceSettings

__all__ = ["SERVICE", "ActingPolicy", "Policy", "PolicyServer", "Security"]

log = logging.getLogger("vla_serve.server")

SWEEP_S = 1.0


class PolicyServer:
    """Serves a policy until :meth:`stop`. A context manager: entering starts it.

    Args:
        policy: a :class:`Policy` (batched: ``prepare``, ``predict``, ``finish``) or an :class:`ActingPolicy`
            (``act``, a row at a time). The model is called from one thread.
        name: of the policy in requests.
        host: address or name to listen on; the default is reachable from this machine alone.
        port: 0: a free one, see :attr:`port`.
        max_queue: most requests that wait while others run; more are RESOURCE_EXHAUSTED.
        max_batch: most rows of a run of the model.
        batch_wait_ms: a run that is not full waits so long for more rows; 0 delays nobody.
        deterministic: every run has the shape of a full batch: an answer does not depend on who else asks.
        max_sessions: most open sessions.
        session_idle_s: a session without a call for so many seconds is closed.
        denoise_steps: for requests that say nothing; None: the policy's own.
        max_denoise_steps: most that a request may ask for.
        max_message_mb: largest request in MiB; what the contract can't need is refused below that.
        max_in_flight: most requests of one connection that are under way.
        max_in_flight_mb: most MiB of requests under way, of all connections together.
        body_timeout_s: a request's body must have arrived after so long.
        model_timeout_s: a run that takes longer is taken for hung: the server says NOT_SERVING and ends.
        security: what a caller must show; needed where others than this machine can reach the host.
        reservation: the host and port, if they were reserved before; else they are when the server starts.
        on_thread, on_warm: see :class:`~vla_serve.engine.engine.Engine`.
    """

    def __init__(
        self,
        policy: Policy | ActingPolicy,
        *,
        name: str = "default",
        host: str = "127.0.0.1",
        port: int = 0,
        max_queue: int = 64,
        max_batch: int = 8,
        batch_wait_ms: float = 0.0,
        deterministic: bool = False,
        max_sessions: int = 64,
        session_idle_s: float = 600.0,
        denoise_steps: int | None = None,
        max_denoise_steps: int = MAX_DENOISE_STEPS,
        max_message_mb: int = 32,
        max_in_flight: int = 64,
        max_in_flight_mb: int = 256,
        body_timeout_s: float = 10.0,
        model_timeout_s: float = 60.0,
        security: Security | None = None,
        reservation: Reservation | None = None,
        on_thread: Callable[[str], None] | None = None,
        on_warm: Callable[[Callable[[], object]], None] | None = None,
    ) -> None:
        for option, value, low, high in (
            ("port", port, 0, 65535),
            ("max_queue", max_queue, 0, 10_000),
            ("max_batch", max_batch, 1, 1024),
            ("batch_wait_ms", batch_wait_ms, 0, 10_000),
            ("max_sessions", max_sessions, 1, 100_000),
            ("max_denoise_steps", max_denoise_steps, 1, MAX_DENOISE_STEPS),
            ("denoise_steps", 1 if denoise_steps is None else denoise_steps, 1, max_denoise_steps),
            ("max_message_mb", max_message_mb, 1, 1024),
            ("max_in_flight", max_in_flight, 1, 100_000),
            ("max_in_flight_mb", max_in_flight_mb, 1, 2**20),
        ):
            if not low <= value <= high:
                raise UserError(f"{option}: {value} is outside {low} to {high}")
        for option, value in (
            ("session_idle_s", session_idle_s),
            ("body_timeout_s", body_timeout_s),
            ("model_timeout_s", model_timeout_s),
        ):
            if not value > 0:
                raise UserError(f"{option}: must be positive, got {value}")
        self._security = security or Security()
        self._denoise_steps, self._on_warm = denoise_steps, on_warm
        self.engine = Engine(
            policy,
            max_queue=max_queue,
            max_batch=max_batch,
            batch_wait_s=batch_wait_ms / 1000,
            deterministic=deterministic,
            model_timeout_s=model_timeout_s,
            on_thread=on_thread,
            on_failure=self._engine_failed,
        )
        self.sessions = Sessions(max_sessions, session_idle_s)
        limit = min(max_message_mb * 2**20, largest_request(self.engine.policy.specs.values()))
        limits = RpcLimits(max_in_flight, max_in_flight_mb * 2**20, body_timeout_s, self._security.token)
        settings = ServiceSettings(name, denoise_steps, max_denoise_steps, limit)
        self._rpcs = Rpcs(limits)
        self._service = PolicyService(self.engine, self.sessions, settings, limits)
        self._options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            # Two servers that share a port in silence would each answer half of the requests.
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", max_in_flight + max_sessions + 64),
            # A robot that lost its power closes no connection: ask whether it is there.
            ("grpc.keepalive_time_ms", 5_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ]
        self._host, self._wanted_port = host, port
        self._reservation = reservation
        self._addresses: list[str] = []
        self._port = 0
        self._over = threading.Event()
        self.failure: str | None = None

    @property
    def port(self) -> int:
        """The bound port; 0 before :meth:`start`."""
        return self._port

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self._host}:{self._port}"

    def start(self) -> None:
        """Reserve the port, warm the policy up, and serve.

        Raises:
            UserError: the port is taken, the host unknown, or open to others without saying who may call.
        """
        reservation = self._reservation or Reservation(self._host, self._wanted_port)
        with ExitStack() as undo:
            undo.callback(self.engine.close)
            undo.callback(reservation.release)
            self._security.check(reservation.addresses)
            credentials = self._security.credentials()
            self.engine.start(self._denoise_steps, self._on_warm)
            reservation.release()
            run(self._start(reservation, credentials))
            undo.pop_all()
        self._port, self._addresses = reservation.port, reservation.targets()
        if self._security.insecure and credentials is None:
            log.warning("insecure: whoever reaches %s can use the policy", ", ".join(self._addresses))
        log.info("serving %s addresses=%s", self.engine.policy.framework, ",".join(self._addresses))

    async def _start(self, reservation: Reservation, credentials: grpc.ServerCredentials | None) -> None:
        self._server = grpc.aio.server(options=self._options)
        self._server.add_generic_rpc_handlers((self._service.handler(self._rpcs),))
        self._health: Any = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for target in reservation.targets():
            try:
                if credentials is None:
                    self._server.add_insecure_port(target)
                else:
                    self._server.add_secure_port(target, credentials)
            except RuntimeError:
                raise UserError(f"cannot listen on {target}; something took it this moment") from None
        await self._server.start()
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._sweeper = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sessions.sweep()

    def _engine_failed(self, reason: str) -> None:
        self.failure = reason
        if self._port:
            self._service.draining = True
            run(self._health.enter_graceful_shutdown(), 5.0)
        self._over.set()

    def wait(self) -> None:
        """Return when the engine has failed (:attr:`failure` says why) or :meth:`interrupt` was called."""
        self._over.wait()

    def interrupt(self) -> None:
        """End :meth:`wait`; safe in a signal handler."""
        self._over.set()

    def stop(self, grace_s: float = 30.0) -> None:
        """Refuse new requests at once, finish those in flight for up to ``grace_s`` seconds, and end."""
        if self._port:
            log.info("stopping: finishing requests in flight")
            run(self._stop(grace_s))
            self._port = 0
        self.engine.close()
        log.info("stopped")

    async def _stop(self, grace_s: float) -> None:
        self._service.draining = True
        await self._health.enter_graceful_shutdown()
        self._sweeper.cancel()
        end = time.monotonic() + grace_s
        # Streams that only watch or hold are not waited for.
        while self._rpcs.in_flight and time.monotonic() < end and self.engine.ended is None:
            await asyncio.sleep(0.01)
        self.engine.drain()
        # The last replies, and the word to the watchers, still have to leave.
        await asyncio.sleep(0.05)
        await self._server.stop(0)

    def __enter__(self) -> PolicyServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
