"""The plot of an ablation: a dot a seed, the mean and its interval; success beside it if there is any."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from vla_train.ablate.intervals import Estimate

_INK, _SOFT, _LINE = "#1f4e79", "#8fb1d1", "#d9d9d9"


def _frame(axes: Any, title: str, labels: Sequence[str], named: bool) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.grid(axis="x", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(length=0, labelsize=9)
    # The first variant on top, as in the table; a label is a name, `$` in it is no formula.
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)))
    axes.set_yticklabels(labels if named else [""] * len(labels), parse_math=False)


def _whisker(axes: Any, y: int, mean: float, low: float | None, high: float | None) -> None:
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=_INK, linewidth=1.8, solid_capstyle="butt")
    axes.plot([mean], [y], marker="o", markersize=6, color=_INK, linestyle="none")


def draw_figure(
    errors: Mapping[str, Estimate | None],
    points: Mapping[str, Sequence[float | None]],
    rates: Mapping[str, tuple[float, float, float]],
) -> str:
    """An SVG document.

    Args:
        errors: variant -> mean action error with its interval over seeds.
        points: variant -> action error of each seed.
        rates: variant -> (success rate, low, high); empty leaves the second panel out.
    """
    labels = list(errors)
    panels = 2 if rates else 1
    figure = Figure(figsize=(4.2 + 3.4 * panels, 1.0 + 0.34 * max(1, len(labels))), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _frame(axes[0], "action error, 95 % t interval over seeds", labels, named=True)
    for y, label in enumerate(labels):
        values = [v for v in points[label] if v is not None]
        axes[0].plot(values, [y] * len(values), "o", markersize=3.5, color=_SOFT, zorder=3)
        mean = errors[label]
        if mean is not None:
            _whisker(axes[0], y, mean.mean, mean.low, mean.high)
    if rates:
        _frame(axes[1], "success %, 95 % Wilson interval", labels, named=False)
        axes[1].set_xlim(-2, 102)
        for label, (rate, low, high) in rates.items():
            _whisker(axes[1], labels.index(label), 100 * rate, 100 * low, 100 * high)
    buffer = io.StringIO()
    # Text stays text; a fixed salt and no date make the bytes repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vla-train"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
