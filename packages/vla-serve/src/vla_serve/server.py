"""A gRPC server around a policy: life cycle only, the RPCs are in :mod:`vla_serve.service`."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from vla_core.errors import UserError

from vla_serve.model_queue import ModelQueue
from vla_serve.policy_protocol import Policy, Row, fake_observation
from vla_serve.predict_request import MAX_DENOISE_STEPS
from vla_serve.service import PolicyServicer
from vla_serve.sessions import Sessions
from vla_serve.v1.policy_pb2_grpc import add_PolicyServiceServicer_to_server

__all__ = ["Policy", "PolicyServer"]

log = logging.getLogger("vla_serve.server")

SERVICE = "vla_serve.v1.PolicyService"


class PolicyServer:
    """Serves a policy until :meth:`stop`. A context manager: entering starts it.

    Args:
        policy: anything with ``specs``, ``framework`` and ``act`` (:class:`Policy`); ``act`` is
            called from one thread.
        name: of the policy in requests.
        host: address to listen on; the default is reachable from this machine alone.
        port: 0: a free one, see :attr:`port`.
        max_queue: most requests that wait while another one runs; more are RESOURCE_EXHAUSTED.
        max_sessions: most open sessions.
        session_idle_s: a session without a call for so many seconds is closed.
        denoise_steps: for requests that say nothing; None: the policy's own.
        max_message_mb: largest request in MiB.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        name: str = "default",
        host: str = "127.0.0.1",
        port: int = 0,
        max_queue: int = 64,
        max_sessions: int = 64,
        session_idle_s: float = 600.0,
        denoise_steps: int | None = None,
        max_message_mb: int = 32,
    ) -> None:
        _check_range("port", port, 0, 65535)
        _check_range("max_queue", max_queue, 0, 10_000)
        _check_range("max_sessions", max_sessions, 1, 100_000)
        _check_range("max_message_mb", max_message_mb, 1, 1024)
        if denoise_steps is not None:
            _check_range("denoise_steps", denoise_steps, 1, MAX_DENOISE_STEPS)
        if not session_idle_s > 0:
            raise UserError(f"session_idle_s: must be positive, got {session_idle_s}")
        self._policy, self._denoise_steps = policy, denoise_steps
        self._queue = ModelQueue(policy, max_queue)
        self._sessions = Sessions(max_sessions, session_idle_s)
        max_bytes = max_message_mb * 2**20
        # A waiting request holds a handler; the spare ones refuse what is too much and answer health.
        handlers = max_queue + 9
        self._server = grpc.server(
            ThreadPoolExecutor(handlers, thread_name_prefix="vla-rpc"),
            options=[
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", -1),
                # Two servers that share a port in silence would each answer half of the requests.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
            maximum_concurrent_rpcs=handlers + 64,
        )
        servicer = PolicyServicer(policy, name, self._queue, self._sessions, denoise_steps, max_bytes)
        add_PolicyServiceServicer_to_server(servicer, self._server)
        self._health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=ThreadPoolExecutor(1)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._host, self._wanted_port, self._port = host, port, 0

    @property
    def port(self) -> int:
        """The bound port; 0 before :meth:`start`."""
        return self._port

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self._host}:{self._port}"

    def start(self) -> None:
        """Warm the policy up, then bind and serve.

        Raises:
            UserError: the port is taken or the host unknown.
        """
        self._warm_up()
        try:
            self._port = self._server.add_insecure_port(f"{self._host}:{self._wanted_port}")
        except RuntimeError as error:
            self._queue.close()
            raise UserError(
                f"cannot listen on {self._host}:{self._wanted_port}; is the port taken? (0 takes a free one)"
            ) from error
        self._server.start()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        log.info("serving %s address=%s", self._policy.framework, self.address)

    def _warm_up(self) -> None:
        for name, spec in self._policy.specs.items():
            row = Row(fake_observation(spec), 0, self._denoise_steps)
            answer = self._queue.submit(row, None).result()
            log.info("warmed up embodiment=%s model_ms=%.1f", name, answer.model_ms)

    def _set_health(self, status: int) -> None:
        for service in ("", SERVICE):
            self._health.set(service, status)

    def stop(self, grace_s: float = 30.0) -> None:
        """Refuse new requests, finish those in flight for up to ``grace_s`` seconds, and end."""
        if self._port:
            self._health.enter_graceful_shutdown()
            log.info("stopping: finishing requests in flight")
            self._server.stop(grace_s).wait()
        self._queue.close()
        log.info("stopped")

    def __enter__(self) -> PolicyServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"{name}: {value} is outside {low} to {high}")
