"""The page itself, in NiceGUI's elements: built once for each browser, refreshed while it looks on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nicegui import Client, ui

from vla_serve.dashboard import charts
from vla_serve.dashboard.history import WINDOW_S, History

REFRESH_S = 0.5
_CARD = "w-full overflow-x-auto p-4 gap-2 shadow-none border border-slate-200 rounded-lg"
_TITLE = "text-xs font-semibold uppercase tracking-wide text-slate-500"


class Looking:
    """Which session each browser looks at."""

    def __init__(self) -> None:
        self._by_client: dict[str, str] = {}

    def at(self, client: str, session: str) -> None:
        """A browser looks at a session; empty: at whichever asked last."""
        self._by_client[client] = session

    def sessions(self) -> list[str]:
        """Of the browsers that are there."""
        self._by_client = {key: name for key, name in self._by_client.items() if key in Client.instances}
        return sorted(set(self._by_client.values()))


def build(history: History, looking: Looking) -> None:
    """Lay the page out, and keep it up to date."""
    ui.query("body").classes("bg-slate-50")
    ui.query(".nicegui-content").classes("p-6 gap-4 max-w-[1400px] mx-auto w-full")
    refreshes = [
        _head(history),
        _figures(history),
        _last(history, looking),
        _speed(history),
        _tables(history),
    ]

    def refresh() -> None:
        if history.report:
            for update in refreshes:
                update()

    refresh()
    ui.timer(REFRESH_S, refresh)


def _head(history: History) -> Any:
    with ui.row().classes("w-full items-baseline gap-3"):
        ui.label("vla-serve").classes("text-2xl font-bold text-slate-900")
        what = ui.label("waiting for the server").classes("text-slate-500")

    def update() -> None:
        current = [p for p in history.report["policies"] if p["state"] == "current"]
        what.text = ", ".join(f"{p['name']} ({p['framework']}), revision {p['revision']}" for p in current)

    return update


def _figures(history: History) -> Any:
    labels: dict[str, ui.label] = {}
    with ui.grid().classes("w-full gap-4 grid-cols-2 sm:grid-cols-4 lg:grid-cols-7"):
        for name in ("chunks/s", "p50", "p99", "waiting", "under way", "sessions", "refused"):
            with ui.card().classes(_CARD):
                ui.label(name).classes(_TITLE)
                labels[name] = ui.label("-").classes(
                    "text-2xl font-semibold text-slate-900 whitespace-nowrap"
                )

    def update() -> None:
        report = history.report
        texts = {
            "chunks/s": f"{history.rate():.3g}",
            "p50": _ms(history.percentile(50)),
            "p99": _ms(history.percentile(99)),
            "waiting": sum(p["queue"] for p in report["policies"]),
            "under way": report["in_flight"],
            "sessions": f"{len(report['sessions'])} / {report['max_sessions']}",
            "refused": sum(report["refused"].values()),
        }
        for name, text in texts.items():
            labels[name].text = str(text)

    return update


def _numbers(group: Mapping[str, Any]) -> str:
    """Of a state group, each with its axis if there are several."""
    named = len(group["axes"]) > 1
    return "  ".join(
        f"{axis} {dim[0]:.4g}" if named else f"{dim[0]:.4g}"
        for axis, dim in zip(group["axes"], group["values"], strict=True)
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _plot(title: str, options: Mapping[str, Any], height: str = "h-56") -> ui.echart:
    with ui.card().classes(_CARD):
        ui.label(title).classes(_TITLE)
        return ui.echart(dict(options)).classes(f"w-full {height}")


def _speed(history: History) -> Any:
    with ui.grid().classes("w-full gap-4 grid-cols-1 md:grid-cols-2"):
        latency = _plot("Latency, last minute", charts.latency([], {}))
        parts = _plot("Where the time goes", charts.parts(history.parts()))
        queue = _plot("Requests", charts.queue([], WINDOW_S))
        batches = _plot("Batch sizes, last minute", charts.batches([]))

    def update() -> None:
        marks = {"p50": history.percentile(50), "p99": history.percentile(99)}
        _show(latency, charts.latency(history.latencies(), marks))
        _show(parts, charts.parts(history.parts()))
        _show(queue, charts.queue(history.queue(), WINDOW_S))
        _show(batches, charts.batches(history.batches()))

    return update


def _show(chart: ui.echart, options: Mapping[str, Any]) -> None:
    if chart.options != options:
        chart.options.clear()
        chart.options.update(options)
        chart.update()


def _last(history: History, looking: Looking) -> Any:
    """The observation that was answered last, of a session of the viewer's choice, and its chunk."""
    client = ui.context.client.id
    with ui.card().classes(_CARD):
        with ui.row().classes("w-full items-center gap-4"):
            ui.label("Last observation and its chunk").classes(_TITLE)
            choice = ui.select({"": "latest session"}, value="").props("dense outlined").classes("min-w-48")
            said = ui.label().classes("text-sm text-slate-500")
        choice.on_value_change(lambda event: looking.at(client, event.value))
        content = ui.element("div").classes("w-full")
    parts: dict[Any, Any] = {}
    shape: list[object] = []

    def lay_out(seen: Mapping[str, Any]) -> None:
        content.clear()
        parts.clear()
        with content:
            with ui.row().classes("w-full gap-4 items-start"):
                for name in seen["images"]:
                    with ui.column().classes("gap-1"):
                        parts["image", name] = (
                            ui.image().props("no-transition no-spinner").classes("w-64 rounded")
                        )
                        ui.label(name).classes("text-xs text-slate-500")
                with ui.column().classes("gap-1 min-w-64"):
                    parts["instruction"] = ui.label().classes("text-lg text-slate-900")
                    for group in seen["state"]:
                        with ui.row().classes("gap-2 text-sm"):
                            ui.label(f"{group['name']} [{group['unit']}]").classes("text-slate-500")
                            parts["state", group["name"]] = ui.label().classes("font-mono")
            columns = min(3, len(seen["actions"]))
            with ui.grid().classes(f"w-full gap-4 grid-cols-1 md:grid-cols-{columns} mt-4"):
                for group in seen["actions"]:
                    title = f"{group['name']} [{group['unit']}], {group['representation']}"
                    with ui.column().classes("gap-1 w-full"):
                        ui.label(title).classes("text-sm text-slate-700")
                        chart = ui.echart(charts.chunk(group, seen["control_hz"]))
                        parts["action", group["name"]] = chart.classes("w-full h-52")

    def update() -> None:
        report = history.report
        ids = {s["id"]: f"{s['id']}... {s['embodiment']}" for s in report["sessions"] if s["answers"]}
        options = {"": "latest session", **ids}
        if choice.value not in options:
            choice.value = ""
        if choice.options != options:
            choice.set_options(options)
        seen = report["shown"].get(choice.value or report["latest"])
        if seen is None:
            said.text = "no open session has an answer"
            return
        said.text = (
            f"session {choice.value or report['latest']}..., {seen['age_s']:.0f} s ago, "
            f"answered in {seen['latency_ms']} ms, request {seen['request_id']}"
        )
        now = [[*seen["images"]], [(g["name"], len(g["values"])) for g in [*seen["state"], *seen["actions"]]]]
        if shape != now:
            shape[:] = now
            lay_out(seen)
        for name, image in seen["images"].items():
            if parts["image", name].source != image:
                parts["image", name].set_source(image)
        parts["instruction"].text = seen["instruction"]
        for group in seen["state"]:
            parts["state", group["name"]].text = _numbers(group)
        for group in seen["actions"]:
            _show(parts["action", group["name"]], charts.chunk(group, seen["control_hz"]))

    return update


_SESSION_COLUMNS = {
    "id": "session",
    "policy": "policy",
    "embodiment": "embodiment",
    "client": "client",
    "idle_s": "last call, s ago",
    "step": "control step",
    "answers": "chunks",
    "latency_ms": "last answer, ms",
}
_POLICY_COLUMNS = {
    "name": "policy",
    "revision": "revision",
    "state": "state",
    "framework": "framework",
    "weights": "weights",
    "statistics": "statistics",
    "queue": "waiting",
    "max_queue": "may wait",
    "max_batch": "rows a run",
}


def _table(title: str, columns: Mapping[str, str], key: str, rows: int = 0) -> ui.table:
    with ui.card().classes(_CARD):
        ui.label(title).classes(_TITLE)
        described = [{"name": n, "label": label, "field": n, "align": "left"} for n, label in columns.items()]
        table = ui.table(columns=described, rows=[], row_key=key, pagination=rows or None)
        return table.props("flat dense no-data-label='none'").classes("w-full")


def _tables(history: History) -> Any:
    sessions = _table("Sessions", _SESSION_COLUMNS, "id", 10)
    policies = _table("Policies", _POLICY_COLUMNS, "revision")
    with ui.card().classes(_CARD):
        ui.label("Contract").classes(_TITLE)
        contracts = ui.element("div").classes("w-full")
    told: list[object] = [None]

    def update() -> None:
        report = history.report
        for table, rows in ((sessions, report["sessions"]), (policies, report["policies"])):
            if table.rows != rows:
                table.rows = rows
        if told[0] != history.contracts:
            told[0] = dict(history.contracts)
            contracts.clear()
            with contracts:
                for name, lines in history.contracts.items():
                    ui.label(name).classes("font-semibold text-slate-700")
                    ui.label("\n".join(lines)).classes("font-mono text-sm whitespace-pre text-slate-700 mb-2")

    return update
