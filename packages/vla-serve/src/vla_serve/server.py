"""A gRPC server around policies: life cycle only, the RPCs are in :mod:`vla_serve.rpcs.service`."""

from __future__ import annotations

import asyncio
import importlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vla_serve.engine.engine import Engine
from vla_serve.engine.manager import Loaded, Loader, PolicyManager, Servable, engines_alive
from vla_serve.engine.policy import ActingPolicy, Policy
from vla_serve.engine.sessions import Sessions
from vla_serve.engine.shelf import Digests, Shelf
from vla_serve.host.ending import Ending
from vla_serve.host.listen import LOCAL, Reservation, Security, channel_options, open_ports
from vla_serve.host.loop import run
from vla_serve.observability.lookouts import Lookouts
from vla_serve.observability.standing import Standing
from vla_serve.rpcs.admin import PolicyAdminService
from vla_serve.rpcs.in_flight import InFlight, RpcLimits
from vla_serve.rpcs.message_size import Sizes
from vla_serve.rpcs.predict_request import MAX_DENOISE_STEPS
from vla_serve.rpcs.predicting import Predictor
from vla_serve.rpcs.reflection import handlers
from vla_serve.rpcs.rpc import Rpcs
from vla_serve.rpcs.service import SERVICE, PolicyService, ServiceSettings
from vla_serve.rpcs.sweeping import sweep
from vla_serve.server_checks import check_options

__all__ = ["SERVICE", "ActingPolicy", "Digests", "Loaded", "Policy", "PolicyServer", "Security"]

log = logging.getLogger("vla_serve.server")

# Its stubs know nothing of its asyncio half.
_health_aio: Any = importlib.import_module("grpc_health.v1.health").aio


class PolicyServer:
    """Serves policies until :meth:`stop`. A context manager: entering starts it.

    Args:
        policy: a :class:`Policy` (batched: ``prepare``, ``predict``, ``finish``), an :class:`ActingPolicy`
            (``act``, a row at a time) or one that was :class:`Loaded`; or several, by name. Each is called
            from a thread of its own.
        name: of the policy in requests, where it is one.
        host: address or name to listen on; the default is reachable from this machine alone.
        port: 0: a free one, see :attr:`port`.
        max_queue: most requests that wait for a policy while others run; more are RESOURCE_EXHAUSTED.
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
        max_in_flight_mpx: most megapixels of their pictures, counted as they are when decoded.
        body_timeout_s: a request's body must have arrived after so long, and a connection said what it is.
        model_timeout_s: a run that takes longer is taken for hung: the server says NOT_SERVING and ends.
        admin_port: PolicyAdminService on a listener of its own, of this machine alone; 0: a free port, see
            :attr:`admin_port`; None: none. Its calls bring :attr:`admin_token`.
        admin_token: by default that of ``security``, else a new one.
        metrics_port: Prometheus metrics likewise, ``GET /metrics``.
        dashboard: a page for a browser likewise; its port.
        otlp_endpoint: OpenTelemetry traces to this collector, for example ``http://127.0.0.1:4317``.
        reflection: answer gRPC server reflection.
        loader: makes a policy of a checkpoint, for LoadPolicy.
        security: what a caller must show; needed where others than this machine can reach the host.
        reservation: the host and port, if they were reserved before; else they are when the server starts.
        on_thread, on_warm: see :class:`~vla_serve.engine.engine.Engine`.
    """

    def __init__(
        self,
        policy: Servable | Mapping[str, Servable],
        *,
        name: str = "default",
        host: str = LOCAL,
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
        max_in_flight_mpx: int = 128,
        body_timeout_s: float = 10.0,
        model_timeout_s: float = 60.0,
        admin_port: int | None = None,
        admin_token: str | None = None,
        metrics_port: int | None = None,
        dashboard: int | None = None,
        otlp_endpoint: str | None = None,
        reflection: bool = False,
        loader: Loader | None = None,
        security: Security | None = None,
        reservation: Reservation | None = None,
        on_thread: Callable[[str], None] | None = None,
        on_warm: Callable[[Callable[[], object]], None] | None = None,
    ) -> None:
        policies = policy if isinstance(policy, Mapping) else {name: policy}
        check_options(locals())
        self._security = security or Security()
        self.shelf = Shelf()
        self._manager = PolicyManager(
            self.shelf,
            denoise_steps,
            loader,
            lambda served: self._sizes.check(served.specs.values()),
            {
                "max_queue": max_queue,
                "max_batch": max_batch,
                "batch_wait_s": batch_wait_ms / 1000,
                "deterministic": deterministic,
                "model_timeout_s": model_timeout_s,
                "on_thread": on_thread,
                "on_failure": self._engine_failed,
            },
        )
        for key, servable in policies.items():
            loaded = servable if isinstance(servable, Loaded) else Loaded(servable)
            self._manager.put(key, replace(loaded, on_warm=loaded.on_warm or on_warm))
        self.sessions = Sessions(max_sessions, session_idle_s)
        specs = [spec for served in self.shelf for spec in served.specs.values()]
        self._sizes = Sizes(specs, max_message_mb * 2**20, max_in_flight_mpx * 10**6)
        token = self._security.token
        limits = RpcLimits(
            max_in_flight, max_in_flight_mb * 2**20, max_in_flight_mpx * 10**6, body_timeout_s, token
        )
        self._in_flight = InFlight(limits)
        standing = Standing(self.shelf, self.sessions, self._in_flight)
        self._lookouts = Lookouts(metrics_port, dashboard, otlp_endpoint, SERVICE, standing)
        watcher = self._lookouts.watcher
        rpcs = Rpcs(self._in_flight, watcher)
        predictor = Predictor(self.shelf, self.sessions, denoise_steps, max_denoise_steps, watcher)
        rows = max((served.engine.max_batch for served in self.shelf), default=max_batch)
        settings = ServiceSettings(
            max_queue, rows, max_denoise_steps, self._sizes.request, self._sizes.batch, max_queue + 1
        )
        service = PolicyService(self.shelf, self.sessions, predictor, rpcs, settings, limits)
        self._handlers = [service.handler()]
        if reflection:
            names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
            self._handlers += handlers(names, Rpcs(InFlight(limits)))
        self.admin_token = admin_token or token or secrets.token_urlsafe(32)
        admins = Rpcs(InFlight(replace(limits, token=self.admin_token)))
        self._admin_handlers = [PolicyAdminService(self._manager).handler(admins)]
        self._options = channel_options(self._sizes.batch, max_in_flight + max_sessions + 64, body_timeout_s)
        self._host, self._wanted_port, self._wanted_admin_port = host, port, admin_port
        self._reservation = reservation
        self._addresses: list[str] = []
        self._servers: list[grpc.aio.Server] = []
        self._ending = Ending()
        self._undo = ExitStack()
        self.port = self.admin_port = self.metrics_port = self.dashboard_port = 0  # before start()
        self.failure: str | None = None

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self._host}:{self.port}"

    @property
    def dashboard_url(self) -> str:
        """Of the dashboard with its token; empty where there is none."""
        return self._lookouts.page_url

    @property
    def engine(self) -> Engine:
        """Of the first policy, as it answers now."""
        return self.shelf.current(self.shelf.names[0]).engine

    def start(self) -> None:
        """Reserve the ports, warm the policies up, and serve.

        Raises:
            UserError: a port is taken, the host unknown, or open to others without saying who may call.
        """
        reservation = self._reservation or Reservation(self._host, self._wanted_port)
        with ExitStack() as undo:
            undo.callback(self._manager.close_all)
            undo.callback(reservation.release)
            undo.callback(self._undo.close)
            self._security.check(reservation.addresses)
            credentials = self._security.credentials()
            admin = None
            if self._wanted_admin_port is not None:
                admin = Reservation(LOCAL, self._wanted_admin_port, "admin_port")
                undo.callback(admin.release)
            self.metrics_port, self.dashboard_port = self._lookouts.start(self._undo)
            self._manager.start_all()
            run(self._start(reservation, credentials, admin))
            undo.pop_all()
        self.port = reservation.port
        self._addresses = reservation.targets()
        addresses = ",".join(self._addresses)
        if warning := self._security.warning(reservation.addresses):
            log.warning("%s", warning)
        if admin is not None:
            self.admin_port = admin.port
            log.info("admin at %s:%d", LOCAL, admin.port)
        frameworks = ",".join(f"{s.name}={s.engine.policy.framework}" for s in self.shelf)
        log.info("serving %s addresses=%s", frameworks, addresses)

    async def _start(
        self,
        reservation: Reservation,
        credentials: grpc.ServerCredentials | None,
        admin: Reservation | None,
    ) -> None:
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers(self._handlers)
        self._health = _health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        open_ports(server, reservation, credentials)
        self._servers = [server]
        if admin is not None:
            admins = grpc.aio.server(options=channel_options(2**20, 64))
            admins.add_generic_rpc_handlers(self._admin_handlers)
            open_ports(admins, admin, None)
            await admins.start()
            self._servers.append(admins)
        await server.start()
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._sweeper = asyncio.create_task(sweep(self.sessions, self._in_flight))

    def _engine_failed(self, reason: str) -> None:
        self.failure = reason
        if self.port:
            self.shelf.stop()
            run(self._health.enter_graceful_shutdown(), 5.0)
        self._ending.announce()

    def wait(self) -> None:
        """Return when an engine has failed (:attr:`failure` says why) or :meth:`interrupt` was called."""
        self._ending.wait()

    def interrupt(self) -> None:
        """End :meth:`wait`; safe in a signal handler."""
        self._ending.announce()

    def stop(self, grace_s: float = 30.0) -> None:
        """Refuse new requests at once, finish those in flight for up to ``grace_s`` seconds, and end."""
        if self.port:
            log.info("stopping: finishing requests in flight")
            run(self._stop(grace_s))
            self.port = 0
        self._manager.close_all()
        self._undo.close()
        log.info("stopped")

    async def _stop(self, grace_s: float) -> None:
        self.shelf.stop()
        await self._health.enter_graceful_shutdown()
        self._sweeper.cancel()
        end = time.monotonic() + grace_s
        # Streams that only watch or hold are not waited for.
        while self._in_flight.requests and time.monotonic() < end and engines_alive(self.shelf):
            await asyncio.sleep(0.01)
        for served in self.shelf:
            served.engine.drain()
        # The last replies, and the word to the watchers, still have to leave.
        await asyncio.sleep(0.05)
        for server in self._servers:
            await server.stop(0)

    def __enter__(self) -> PolicyServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
