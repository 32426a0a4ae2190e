"""The page's plots, as options of Apache ECharts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = ("#2563eb", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#0ea5e9", "#ec4899", "#64748b")
_GREY, _LINE = "#64748b", "#e2e8f0"

Options = dict[str, Any]


def _axis(kind: str, name: str = "", **more: Any) -> Options:
    return {
        "type": kind,
        "name": name,
        "nameLocation": "middle",
        "nameGap": 26,
        "nameTextStyle": {"color": _GREY},
        "axisLabel": {"color": _GREY, "hideOverlap": True},
        "axisLine": {"lineStyle": {"color": _LINE}},
        "splitLine": {"lineStyle": {"color": "#f1f5f9"}},
        **more,
    }


def _chart(x: Options, y: Options, series: list[Options], legend: bool = False, top: int = 14) -> Options:
    return {
        "animation": False,
        "color": list(COLOURS),
        "grid": {"left": 48, "right": 18, "top": 34 if legend else top, "bottom": 44},
        "legend": {"show": legend, "top": 0, "icon": "roundRect", "itemWidth": 12, "itemHeight": 8},
        "tooltip": {"trigger": "axis"},
        "xAxis": x,
        "yAxis": y,
        "series": series,
    }


def latency(bins: Sequence[tuple[float, int]], marks: Mapping[str, float | None]) -> Options:
    """The histogram, with lines at percentiles."""
    lines = [{"xAxis": value, "name": name} for name, value in marks.items() if value is not None]
    width = bins[1][0] - bins[0][0] if len(bins) > 1 else 1.0
    ends = (bins[0][0] - width / 2, bins[-1][0] + width / 2) if bins else (0.0, 1.0)
    series = {
        "type": "bar",
        "name": "answers",
        "barWidth": "96%",
        "data": [[round(middle, 3), count] for middle, count in bins],
        "markLine": {
            "silent": True,
            "symbol": "none",
            "data": lines,
            "label": {"formatter": "{b}", "color": "#0f172a"},
            "lineStyle": {"color": "#0f172a", "type": "dashed"},
        },
    }
    x = _axis("value", "ms from arrival to answer", min=ends[0], max=ends[1])
    x["axisLabel"].update(showMinLabel=False, showMaxLabel=False)
    return _chart(x, _axis("value", minInterval=1), [series], top=26)


def parts(medians: Mapping[str, float]) -> Options:
    """Where the time goes: one bar, a part after the other."""
    names = list(medians)
    options = _chart(
        _axis("value", "ms, median"),
        _axis("category", data=names[::-1]),
        [
            {
                "type": "bar",
                "name": "ms",
                "data": [float(f"{medians[n]:.3g}") for n in names[::-1]],
                "barWidth": "60%",
            }
        ],
    )
    options["series"][0]["label"] = {"show": True, "position": "right", "color": "#0f172a"}
    options["grid"].update(left=62, right=52)
    return options


def batches(counts: Sequence[tuple[int, int]]) -> Options:
    """How many answers came of runs of how many rows."""
    x = _axis("category", "answers, by the rows of their run", data=[str(rows) for rows, _ in counts])
    series = {"type": "bar", "name": "answers", "data": [count for _, count in counts], "barMaxWidth": 36}
    return _chart(x, _axis("value", minInterval=1), [{**series, "itemStyle": {"color": COLOURS[2]}}])


def queue(points: Sequence[tuple[float, int, int]], window_s: float) -> Options:
    """Requests that wait and that are under way, over time."""
    series = [
        {
            "type": "line",
            "name": name,
            "showSymbol": False,
            "step": "end",
            "data": [[point[0], point[index]] for point in points],
            "lineStyle": {"width": 2},
        }
        for index, name in ((2, "under way"), (1, "waiting"))
    ]
    x = _axis("value", "seconds", min=-window_s, max=0)
    return _chart(x, _axis("value", minInterval=1), series, legend=True)


def chunk(group: Mapping[str, Any], control_hz: float) -> Options:
    """One action group of a chunk: a line for each dim over the chunk's time."""
    dims = group["values"]
    several = len(dims) > 1
    series = [
        {
            "type": "line",
            "name": axis if several else group["name"],
            "symbolSize": 4,
            "data": [[round(step / control_hz, 4), value] for step, value in enumerate(values)],
            "lineStyle": {"width": 2},
        }
        for axis, values in zip(group["axes"], dims, strict=True)
    ]
    x = _axis("value", "seconds from the observation", max=round((len(dims[0]) - 1) / control_hz, 4) or 1)
    return _chart(x, _axis("value", scale=True), series, legend=several and len(dims) <= 8)
