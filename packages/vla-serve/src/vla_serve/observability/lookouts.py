"""Those that look on at a server, made of its options, and what they need to start and to end."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from vla_serve.dashboard.feed import Dashboard
from vla_serve.observability.metrics import Metrics
from vla_serve.observability.standing import Standing
from vla_serve.observability.tracing import exporting_to
from vla_serve.observability.watching import Watcher, Watchers

log = logging.getLogger("vla_serve.server")


class Lookouts:
    """Metrics, traces and a page for a browser, as far as they are wanted.

    Args:
        metrics_port: Prometheus metrics; None: none.
        dashboard: port of the page; None: none.
        otlp_endpoint: traces to this collector; None: none.
        service: full name of the gRPC service.
        standing: what stands at the moment.

    Raises:
        UserError: an extra that is not installed, or no such address.
    """

    def __init__(
        self,
        metrics_port: int | None,
        dashboard: int | None,
        otlp_endpoint: str | None,
        service: str,
        standing: Standing,
    ) -> None:
        self._metrics_port, self._dashboard_port = metrics_port, dashboard
        self._metrics = None if metrics_port is None else Metrics(standing.gauges)
        self._dashboard = None if dashboard is None else Dashboard(standing)
        self._tracing = None if otlp_endpoint is None else exporting_to(otlp_endpoint, service)
        page = None if self._dashboard is None else self._dashboard.recorder
        wanted: list[Watcher | None] = [self._metrics, self._tracing, page]
        self.watcher = Watchers([watcher for watcher in wanted if watcher is not None])
        """For whoever answers."""

    @property
    def page_url(self) -> str:
        """Of the page, with its token; empty: there is none, or it has not begun."""
        return "" if self._dashboard is None else self._dashboard.url

    def start(self, undo: ExitStack) -> tuple[int, int]:
        """Begin, until ``undo``; the ports of metrics and page, 0 where there is none.

        Raises:
            UserError: a port is taken.
        """
        metrics = page = 0
        if self._tracing is not None:
            undo.callback(self._tracing.close)
        if self._metrics is not None and self._metrics_port is not None:
            metrics, stop = self._metrics.serve(self._metrics_port)
            undo.callback(stop)
            log.info("metrics at http://127.0.0.1:%d/metrics", metrics)
        if self._dashboard is not None and self._dashboard_port is not None:
            page = self._dashboard.start(self._dashboard_port)
            undo.callback(self._dashboard.stop)
            log.info("dashboard at http://127.0.0.1:%d", page)  # its token is no matter of the log
        return metrics, page
