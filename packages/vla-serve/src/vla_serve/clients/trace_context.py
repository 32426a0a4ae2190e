"""What a client's calls carry of the span that it is in: W3C trace context, read by servers with tracing."""

from __future__ import annotations

import sys

Metadata = tuple[tuple[str, str], ...]


def trace_context() -> Metadata:
    """``traceparent`` (and ``tracestate``) of OpenTelemetry's current span; empty where there is none.

    Nothing is imported that the program has not imported itself: without OpenTelemetry in it, no span is
    current.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
