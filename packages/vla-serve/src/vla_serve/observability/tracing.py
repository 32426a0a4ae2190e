"""OpenTelemetry traces: a span for each call, and below it where a chunk's time went.

Needs the extra ``vla-serve[otel]``. A caller's trace goes on here when its calls carry W3C ``traceparent``
metadata, as the gRPC instrumentation of OpenTelemetry sends it.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vla_core.errors import UserError

from vla_serve.engine.sessions import Session
from vla_serve.engine.ticket import Answer
from vla_serve.observability.watching import Watcher

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

FLUSH_S = 2.0
"""For what is left when a server ends, and for each message to the collector."""

_CALL: ContextVar[Span | None] = ContextVar("vla_serve_span", default=None)


class Tracing(Watcher):
    """Makes spans.

    The span ``vla_serve.v1.PolicyService/RPC`` has children ``decode``, ``prepare``, ``queue`` (waiting for
    the model), ``infer`` and ``finish`` for each chunk; all carry ``vla_serve.request_id``, the name that the
    log has for the request.

    Args:
        provider: of tracers; its processors say where spans go.
        service: full name of the gRPC service.
        exporter: that the provider's processor sends with, told to give up when the end takes too long.
    """

    def __init__(self, provider: TracerProvider, service: str, exporter: SpanExporter | None = None) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._service, self._trace = provider, service, trace
        self._exporter = exporter
        self._tracer = provider.get_tracer("vla_serve")
        self._propagator = TraceContextTextMapPropagator()

    def began(self, rpc: str, request_id: str, metadata: Iterable[tuple[str, Any]]) -> None:
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{self._service}/{rpc}",
            context=self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": self._service,
                "rpc.method": rpc,
                "vla_serve.request_id": request_id,
            },
        )
        _CALL.set(span)

    def called(self, rpc: str, code: str) -> None:
        span = _CALL.get()
        if span is None or rpc.endswith(".item"):
            return
        span.set_attribute("rpc.grpc.status", code)
        if code != "OK":
            span.set_status(self._trace.StatusCode.ERROR, code)

    def ended(self, rpc: str) -> None:
        span = _CALL.get()
        if span is not None:
            span.end()

    def answered(self, session: Session, answer: Answer, total_ms: float, request_id: str) -> None:
        call = _CALL.get()
        if call is None:
            return
        context = self._trace.set_span_in_context(call)
        offset = time.time_ns() - time.monotonic_ns()
        run_start = answer.ran_at - answer.model_ms / 1000
        decoded = answer.began + answer.decode_ms / 1000
        prepared = decoded + answer.prepare_ms / 1000
        for name, start, end in (
            ("decode", answer.began, decoded),
            ("prepare", decoded, prepared),
            ("queue", prepared, run_start),
            ("infer", run_start, answer.ran_at),
            ("finish", answer.done_at - answer.finish_ms / 1000, answer.done_at),
        ):
            attributes: dict[str, str | int] = {
                "vla_serve.request_id": request_id,
                "vla_serve.policy": session.policy,
            }
            if name == "infer":
                attributes["vla_serve.batch"] = answer.batch
            span = self._tracer.start_span(
                name, context, start_time=offset + int(1e9 * start), attributes=attributes
            )
            span.end(offset + int(1e9 * max(start, end)))

    def close(self) -> None:
        """Send what is left to the collector, for some :data:`FLUSH_S`."""
        end = threading.Timer(FLUSH_S, self._exporter.shutdown) if self._exporter is not None else None
        if end is not None:
            end.start()
        self._provider.shutdown()
        if end is not None:
            end.cancel()


def exporting_to(endpoint: str, service: str) -> Tracing:
    """Traces to an OTLP collector over gRPC; plain text, so it must be on this machine, or ``https://``.

    Raises:
        UserError: the extra is not installed, or no such address.
    """
    secure = _check(endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise UserError(
            f"otlp_endpoint: '{error.name}' is not installed: pip install 'vla-serve[otel]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "vla-serve"}))
    exporter = OTLPSpanExporter(endpoint, insecure=not secure, timeout=FLUSH_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider, service, exporter)


def _check(endpoint: str) -> bool:
    """Whether the endpoint is reached over TLS."""
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        good = False
    if not good:
        raise UserError(f"otlp_endpoint: '{endpoint}' is no address such as http://127.0.0.1:4317")
    if parts.scheme == "https":
        return True
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise UserError(f"otlp_endpoint: '{endpoint}' is another machine's; that needs https://")
    return False
