"""Those that look on at a server, made of its options, and what they need to start and to end."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from vla_serve.metrics import Gauges, Metrics
from vla_serve.tracing import exporting_to
from vla_serve.watching import Watcher, Watchers

log = logging.getLogger("vla_serve.server")


class Lookouts:
    """Metrics and traces, as far as they are wanted.

    Args:
        metrics_port: Prometheus metrics; None: none.
        otlp_endpoint: traces to this collector; None: none.
        service: full name of the gRPC service.
        gauges: what stands at the moment.

    Raises:
        UserError: an extra that is not installed, or no such address.
    """

    def __init__(
        self, metrics_port: int | None, otlp_endpoint: str | None, service: str, gauges: Gauges
    ) -> None:
        self._metrics_port = metrics_port
        self._metrics = None if metrics_port is None else Metrics(gauges)
        self._tracing = None if otlp_endpoint is None else exporting_to(otlp_endpoint, service)
        wanted: list[Watcher | None] = [self._metrics, self._tracing]
        self.watcher = Watchers([watcher for watcher in wanted if watcher is not None])
        """For whoever answers."""

    def start(self, undo: ExitStack) -> int:
        """Begin, until ``undo``; the port of the metrics, or 0.

        Raises:
            UserError: a port is taken.
        """
        if self._tracing is not None:
            undo.callback(self._tracing.close)
        if self._metrics is None or self._metrics_port is None:
            return 0
        port, stop = self._metrics.serve(self._metrics_port)
        undo.callback(stop)
        log.info("metrics at http://127.0.0.1:%d/metrics", port)
        return port
