"""A report on a data set's numbers as text, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from vla_data.facts import BINS, Dim, Report

WIDTH, HEIGHT = 192, 44
STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1400px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.about { color: #555; margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 500; color: #555; padding: 0.2rem 0.5rem; }
th { border-bottom: 1px solid #ccc; }
td { text-align: right; padding: 0.3rem 0.5rem; border-bottom: 1px solid #eee; white-space: nowrap; }
th:nth-child(-n+2), td:first-child { text-align: left; }
tr.facts td { text-align: left; white-space: normal; color: #a4430b; padding-top: 0; }
tr.told td { border-bottom: none; }
ul.facts li { color: #a4430b; }
.fine { color: #22663a; }
svg { display: block; }
rect.bar { fill: #3b6ea8; }
line.mark { stroke: #d9822b; }
line.base { stroke: #bbb; }
"""
NOTHING = "Nothing: no NaN, constant or dead dim, outlier, jump or clipped range."
LEGEND = """Histograms are between min and max; orange lines are the 1 % and 99 % quantiles. At ends: frames
exactly at min or max. Beyond q99: frames that <code>normalize</code> in mode q99 puts beyond -1 or 1 (clipped
there where <code>clip</code> is 1). Largest: the greatest absolute value after it."""
COLUMNS = ("min", "1 %", "mean", "99 %", "max", "std", "at ends", "beyond q99", "largest")


def text(report: Report) -> str:
    """The table and what is suspicious, for a terminal."""
    lines = [_about(report)]
    for vector in ("state", "action"):
        dims = [dim for dim in report.dims if dim.vector == vector]
        if not dims:
            continue
        lines += ["", f"{vector:<32}" + "".join(f"{column:>11}" for column in COLUMNS)]
        lines += [f"  {dim.name:<30}" + "".join(f"{value:>11}" for value in _values(dim)) for dim in dims]
    facts = list(report.all_facts())
    lines += ["", f"suspicious ({len(facts)})" if facts else "nothing suspicious"]
    return "\n".join([*lines, *(f"  {fact}" for fact in facts)])


def page(report: Report) -> str:
    """The same with a histogram of each dim."""
    return "\n".join(_page(report)) + "\n"


def _about(report: Report) -> str:
    return (
        f"{report.name}: robot {report.robot}, {report.control_hz:g} Hz, {report.episodes} episodes, "
        f"{report.frames} frames"
    )


def _values(dim: Dim) -> list[str]:
    numbers = (dim.low, dim.q01, dim.mean, dim.q99, dim.high, dim.std)
    shares = (dim.at_ends, dim.clipped)
    return [
        *(f"{value:.4g}" for value in numbers),
        *(f"{100 * share:.2f} %" for share in shares),
        f"{dim.largest:.3g}",
    ]


def _page(report: Report) -> Iterator[str]:
    name = escape(report.name)
    yield f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{name}: numbers</title>"
    yield f"<style>{STYLE}</style></head><body><h1>{name}</h1>"
    about = _about(report).partition(": ")[2]
    yield f"<p class='about'>{escape(about)}</p><h2>What is suspicious</h2>"
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in report.all_facts())
    yield f"<ul class='facts'>{facts}</ul>" if facts else f"<p class='fine'>{NOTHING}</p>"
    for vector in ("state", "action"):
        dims = [dim for dim in report.dims if dim.vector == vector]
        if dims:
            yield from _table(vector, dims)
    yield f"<p class='about'>{LEGEND}</p></body></html>"


def _table(vector: str, dims: list[Dim]) -> Iterator[str]:
    head = "".join(f"<th>{escape(column)}</th>" for column in ("histogram", *COLUMNS))
    yield f"<h2>{vector}</h2><table><tr><th>dim</th>{head}</tr>"
    for dim in dims:
        cells = "".join(f"<td>{escape(value)}</td>" for value in _values(dim))
        facts = "<br>".join(escape(fact) for fact in dim.facts)
        told = " class='told'" if facts else ""
        yield f"<tr{told}><td>{escape(dim.name)}</td><td>{_histogram(dim)}</td>{cells}</tr>"
        if facts:
            yield f"<tr class='facts'><td colspan='{2 + len(COLUMNS)}'>{facts}</td></tr>"
    yield "</table>"


def _histogram(dim: Dim) -> str:
    """Bars as high as their share of the fullest one; what has frames at all is at least a pixel."""
    top, step = max(dim.counts), WIDTH / BINS
    label = f"histogram of {escape(dim.name)}"
    parts = [f"<svg width='{WIDTH}' height='{HEIGHT}' role='img' aria-label='{label}'>"]
    for i, count in enumerate(dim.counts):
        if count:
            high = max(1.0, (HEIGHT - 2) * count / top)
            parts.append(
                f"<rect class='bar' x='{i * step:.1f}' y='{HEIGHT - 1 - high:.1f}' "
                f"width='{step - 0.6:.1f}' height='{high:.1f}'/>"
            )
    if dim.high > dim.low:
        for mark in (dim.q01, dim.q99):
            x = WIDTH * (mark - dim.low) / (dim.high - dim.low)
            parts.append(f"<line class='mark' x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{HEIGHT}'/>")
    base = HEIGHT - 0.5
    parts.append(f"<line class='base' x1='0' x2='{WIDTH}' y1='{base}' y2='{base}'/></svg>")
    return "".join(parts)
