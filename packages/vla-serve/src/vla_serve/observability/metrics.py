"""Prometheus metrics of a server, on a port of their own. Needs the extra ``vla-serve[metrics]``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vla_core.errors import UserError

from vla_serve.engine.sessions import Session
from vla_serve.engine.ticket import Answer
from vla_serve.host.listen import LOCAL, why_not
from vla_serve.observability.watching import Watcher

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

Gauges = Callable[[], Iterable[tuple[str, str, Mapping[str, str], float]]]
"""What stands at the moment: (name, help, labels, value); read when somebody asks."""


class Metrics(Watcher):
    """What a server counts.

    Labels are names of RPCs, status codes and policies, never what a client wrote: their number is bounded.
    """

    def __init__(self, gauges: Gauges) -> None:
        try:
            import prometheus_client as prometheus
        except ModuleNotFoundError as error:
            raise UserError(
                f"metrics_port: '{error.name}' is not installed: pip install 'vla-serve[metrics]'"
            ) from None
        self.registry: CollectorRegistry = prometheus.CollectorRegistry()
        self._gauges = gauges
        self._calls = prometheus.Counter(
            "vla_serve_calls", "Calls that are over.", ["rpc", "code"], registry=self.registry
        )
        self._chunks = prometheus.Counter(
            "vla_serve_chunks", "Chunks answered.", ["policy"], registry=self.registry
        )
        self._executed = prometheus.Counter(
            "vla_serve_executed_steps",
            "Steps that robots said they executed.",
            ["policy"],
            registry=self.registry,
        )
        self._total = prometheus.Histogram(
            "vla_serve_request_seconds",
            "From a request's arrival to its answer.",
            ["policy"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._parts = prometheus.Histogram(
            "vla_serve_part_seconds",
            "Where the time of an answer went.",
            ["policy", "part"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batch = prometheus.Histogram(
            "vla_serve_batch_rows",
            "Rows of the run that answered a request.",
            ["policy"],
            buckets=ROWS,
            registry=self.registry,
        )
        self.registry.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The gauges, for prometheus_client."""
        from prometheus_client.core import GaugeMetricFamily

        families: dict[str, Any] = {}
        for name, text, labels, value in self._gauges():
            if name not in families:
                families[name] = GaugeMetricFamily(f"vla_serve_{name}", text, labels=list(labels))
            families[name].add_metric(list(labels.values()), value)
        return families.values()

    def called(self, rpc: str, code: str) -> None:
        self._calls.labels(rpc, code).inc()

    def answered(self, session: Session, answer: Answer, total_ms: float, request_id: str) -> None:
        policy = session.policy
        self._chunks.labels(policy).inc()
        self._total.labels(policy).observe(total_ms / 1000)
        self._batch.labels(policy).observe(answer.batch)
        for part in ("queue", "decode", "prepare", "model", "finish"):
            self._parts.labels(policy, part).observe(getattr(answer, f"{part}_ms") / 1000)

    def executed(self, policy: str, steps: int) -> None:
        self._executed.labels(policy).inc(steps)

    def serve(self, port: int) -> tuple[int, Callable[[], None]]:
        """Answer ``GET /metrics`` on this machine alone; the port, and what ends it.

        Raises:
            UserError: the port is taken.
        """
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, LOCAL, self.registry)
        except OSError as error:
            raise UserError(why_not(LOCAL, LOCAL, port, error, "metrics_port")) from None

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return int(server.server_port), stop
