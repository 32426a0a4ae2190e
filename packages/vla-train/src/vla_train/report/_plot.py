"""Line plots as inline SVG whose colours are the page's own variables, so that they follow its theme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vla_train.report._page import Markup, tag
from vla_train.report._text import plain, short_count

if TYPE_CHECKING:
    # Whoever trains imports this module, and matplotlib takes half a second: it is imported to draw.
    from matplotlib.figure import Figure

# matplotlib wants fixed colours: each stands for a variable of style.css, which replaces it in the SVG.
_THEME = {
    "#010a01": "muted", "#010b02": "line",
    "#010c10": "s0", "#010c11": "s1", "#010c12": "s2", "#010c13": "s3", "#010c14": "s4", "#010c15": "s5",
}  # fmt: skip
_COLOR = {variable: color for color, variable in _THEME.items()}
SERIES = tuple(variable for variable in _THEME.values() if variable.startswith("s"))
MAX_POINTS = 500


@dataclass(frozen=True)
class Line:
    """One curve. ``color`` is a variable of the page; ``faint`` ones have no entry in the legend.

    ``dots``: on every point where they are ``few``, on the ``first`` one, or ``none``.
    """

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    color: str
    width: float = 1.6
    dashed: bool = False
    faint: bool = False
    dots: Literal["few", "first", "none"] = "few"


def axis_number(value: float, _position: int | None = None) -> str:
    """Tick label."""
    return short_count(value) if abs(value) >= 1000 else plain(value)


def style_axes(axes: Any, font: float) -> None:
    """A frame that stays in the background."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_COLOR["line"])
    axes.grid(axis="y", color=_COLOR["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4, labelsize=font, labelcolor=_COLOR["muted"])
    axes.patch.set_visible(False)
    axes.margins(x=0.015)


def label_axes(axes: Any, x: str = "", y: str = "", font: float = 9) -> None:
    """Axis labels; ``y`` stands above the axis, where it can be read upright."""
    if x:
        axes.set_xlabel(x, fontsize=font, color=_COLOR["muted"], labelpad=3)
    if y:
        # A name is a name: `$` in it is no formula.
        axes.set_title(y, fontsize=font, color=_COLOR["muted"], loc="left", pad=6, parse_math=False)


def _set_scale(axes: Any, lines: Sequence[Line], log: bool, zero: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    values = np.concatenate([line.y for line in lines])
    values = values[np.isfinite(values)]
    if log and values.size and values.min() > 0 and values.max() > 15 * values.min():
        axes.set_yscale("log")
        decades = math.log10(values.max() / values.min())
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        if zero:
            top = float(values.max()) if values.size else 1.0
            axes.set_ylim(0, 1.08 * top if top > 0 else 1)
    axes.yaxis.set_major_formatter(FuncFormatter(axis_number))


def draw(axes: Any, lines: Sequence[Line]) -> None:
    """Draw curves; few points get markers, so that a single one can be seen."""
    for line in lines:
        if line.dashed and len(line.x) == 1:
            # A line to compare with: of a single point nothing would be seen.
            axes.axhline(line.y[0], color=_COLOR[line.color], linewidth=line.width, linestyle=(0, (4, 2.5)))
            continue
        few = line.dots == "few" and len(line.x) <= 20 and not line.dashed and not line.faint
        axes.plot(
            line.x,
            line.y,
            color=_COLOR[line.color],
            linewidth=line.width,
            linestyle=(0, (4, 2.5)) if line.dashed else "-",
            alpha=0.35 if line.faint else 1.0,
            marker="o" if few or line.dots == "first" else None,
            markevery=[0] if line.dots == "first" else None,
            markersize=3.6,
            solid_capstyle="round",
            solid_joinstyle="round",
        )


def panel(axes: Any, lines: Sequence[Line], y: str = "", x: str = "step", log: bool = False,
          zero: bool = False) -> None:  # fmt: skip
    """Curves over steps; ``log`` where the values span more than a decade, ``zero`` starts at 0."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    draw(axes, lines)
    style_axes(axes, 9)
    label_axes(axes, x, y)
    _set_scale(axes, lines, log, zero)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(axis_number))


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own (no global state), in inches of 72 SVG units."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    return figure


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an ``<svg>`` element; ``name`` keeps its ids apart from those of other figures."""
    import matplotlib

    buffer = io.StringIO()
    # Text stays text, in the page's font; a fixed salt and no date make the bytes repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vla-train"}):
        blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=blank)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None
    body = text[text.index(">") + 1 : text.rindex("</svg>")]
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = re.sub(r"#010[abc][01][0-5]\b", lambda m: f"var(--{_THEME[m.group()]})", body)
    return tag("svg", Markup(body), viewBox=view.group(1), role="img", aria_label=description)


def legend(lines: Sequence[Line]) -> Markup:
    """Keys of the curves, as HTML so that they wrap."""
    keys = []
    for line in lines:
        swatch = tag("i", class_="dashed" if line.dashed else "", style=f"color:var(--{line.color})")
        keys.append(tag("span", swatch, line.label, class_="key"))
    return tag("span", *keys, class_="legend")


def thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most ``MAX_POINTS`` points: means of equal runs of neighbours."""
    if len(x) <= MAX_POINTS:
        return x, y
    edges: NDArray[np.int64] = np.linspace(0, len(x), MAX_POINTS + 1).astype(np.int64)
    sizes = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / sizes, np.add.reduceat(y, edges[:-1]) / sizes


def smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred running mean over a twenty-fifth of the curve (ends use what there is)."""
    half = max(1, len(y) // 50)
    ones = np.ones(2 * half + 1)
    known = np.isfinite(y)
    total = np.convolve(np.where(known, y, 0.0), ones, mode="full")[half:-half]
    count = np.convolve(known.astype(float), ones, mode="full")[half:-half]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
