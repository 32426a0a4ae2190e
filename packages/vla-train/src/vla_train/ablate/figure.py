"""The plot of an ablation: a dot a seed, mean and interval, paired differences, success if there is any."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from vla_train.ablate.intervals import Estimate

_INK, _SOFT, _LINE = "#1f4e79", "#8fb1d1", "#d9d9d9"


def _frame(axes: Any, title: str, labels: Sequence[str], named: bool) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.grid(axis="x", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.tick_params(length=0, labelsize=9)
    # The first variant on top, as in the table; a label is a name, `$` in it is no formula.
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)))
    axes.set_yticklabels(labels if named else [""] * len(labels), parse_math=False)


def _whisker(axes: Any, y: int, mean: float, low: float | None, high: float | None) -> None:
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=_INK, linewidth=1.8, solid_capstyle="butt")
    axes.plot([mean], [y], marker="o", markersize=6, color=_INK, linestyle="none")


def _counted(numbers: Sequence[int], what: str) -> str:
    """``n = 3 seeds``, ``n = 1-3 seeds``."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"n = {low} {what}" if low == high else f"n = {low}-{high} {what}"


def draw_figure(
    errors: Mapping[str, Estimate | None],
    points: Mapping[str, Sequence[float | None]],
    differences: Mapping[str, Estimate | None],
    rates: Mapping[str, tuple[float, float, float]],
    episodes: Mapping[str, int],
) -> str:
    """An SVG document.

    Args:
        errors: variant -> mean action error with its interval over seeds.
        points: variant -> action error of each seed.
        differences: variant -> paired difference to the first one's; without any the panel is left out.
        rates: variant -> (success rate, low, high); empty leaves the panel out.
        episodes: variant -> of its success rate.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    labels = list(errors)
    paired = {label: found for label, found in differences.items() if found is not None}
    panels = 1 + bool(paired) + bool(rates)
    figure = Figure(figsize=(4.2 + 3.4 * panels, 1.3 + 0.34 * max(1, len(labels))), layout="constrained")
    FigureCanvasSVG(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    first = axes.pop(0)
    n = _counted([e.n for e in errors.values() if e is not None], "seeds")
    _frame(
        first, f"action error, normalised; lower is better\nmean, 95 % t interval, {n}", labels, named=True
    )
    for y, label in enumerate(labels):
        values = [v for v in points[label] if v is not None]
        first.plot(values, [y] * len(values), "o", markersize=3.5, color=_SOFT, zorder=3)
        mean = errors[label]
        if mean is not None:
            _whisker(first, y, mean.mean, mean.low, mean.high)
    if paired:
        ax = axes.pop(0)
        n = _counted([e.n for e in paired.values()], "pairs of seeds")
        _frame(
            ax, f"its difference to {labels[0]}; below 0 is better\nmean, 95 % t interval, {n}", labels, False
        )
        ax.axvline(0.0, color=_SOFT, linewidth=1.0)
        for label, mean in paired.items():
            _whisker(ax, labels.index(label), mean.mean, mean.low, mean.high)
    if rates:
        ax = axes.pop(0)
        n = _counted(list(episodes.values()), "episodes")
        _frame(ax, f"success %; higher is better\n95 % Wilson interval, {n}", labels, named=False)
        ax.set_xlim(-2, 102)
        for label, (rate, low, high) in rates.items():
            _whisker(ax, labels.index(label), 100 * rate, 100 * low, 100 * high)
    buffer = io.StringIO()
    # Text stays text; a fixed salt and no date make the bytes repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vla-train"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
