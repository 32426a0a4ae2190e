"""A taken batch as one self-contained page. Shapes: T action steps, A action dims, D dims of a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from vla_core.types import Bool
from vla_data.view.page import STYLE, inline
from vla_data.view.plot import colour, curves

from vla_train.batch_view.taken import Part, ShownRow, Taken
from vla_train.batch_view.text import heading, mask_of

OWN_STYLE = """
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: #5a6472; border-bottom: 1px solid #ccd3dc; }
td, th { padding: 0.15rem 1rem 0.15rem 0; white-space: nowrap; }
td.number { text-align: right; }
section { border-top: 3px solid #2f6db3; margin-top: 2rem; padding-top: 0.4rem; }
.views { display: flex; gap: 8px; flex-wrap: wrap; }
.views figure { margin: 0; width: 224px; } .views img { width: 100%; border-radius: 3px;
  image-rendering: pixelated; display: block; }
.views .none { aspect-ratio: 1; border: 1px dashed #8b94a1; border-radius: 3px; display: grid;
  place-items: center; color: #5a6472; }
figcaption { font-size: 0.78rem; color: #5a6472; text-align: center; }
.prompt { font: 0.82rem/1.45 ui-monospace, monospace; background: #f5f6f8; padding: 0.5rem 0.8rem;
  overflow-wrap: anywhere; white-space: pre-wrap; }
.mask { width: auto; display: inline-block; vertical-align: middle; }
.counts { fill: #3c9a5f; } .out { fill: #dfe3e9; }
.both { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.4rem; }
.both h3 { font-size: 0.92rem; margin: 0.6rem 0 0; }
.keys { font-size: 0.8rem; color: #5a6472; } .keys i { display: inline-block; width: 14px; height: 3px;
  margin: 0 4px 3px 9px; }
"""
_CELL, _WIDTH = 9, 560


def page(taken: Taken) -> str:
    """HTML: the tensors, and for each row its pictures, prompt, mask, and actions recorded and normalised."""
    return "\n".join(_page(taken)) + "\n"


def _page(taken: Taken) -> Iterator[str]:
    title = escape(heading(taken))
    yield f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
    yield f"<style>{STYLE}{OWN_STYLE}</style></head><body><h1>{title}</h1>"
    counts = ", ".join(f"{label} {n}" for label, n in taken.counts.items())
    yield f"<p class='about'>{escape(taken.epoch)}<br>rows from: {escape(counts)}</p>"
    if taken.augmented:
        yield "<p class='note'>Pictures, cameras and states are those after datasets.augmentation.</p>"
    yield "<h2>Tensors</h2><table><tr>"
    yield "".join(f"<th>{name}</th>" for name in ("name", "dtype", "shape", "min", "max", "true")) + "</tr>"
    for line in taken.lines:
        shape = " x ".join(map(str, line.shape))
        share = "" if line.share is None else f"{100 * line.share:.1f} %"
        yield f"<tr><td>{escape(line.name)}</td><td>{line.dtype}</td><td>{shape}</td>"
        yield "".join(f"<td class='number'>{end}</td>" for end in line.ends)
        yield f"<td class='number'>{share}</td></tr>"
    yield "</table>"
    for i, row in enumerate(taken.rows):
        yield from _row(i, row)
    yield "</body></html>"


def _row(i: int, row: ShownRow) -> Iterator[str]:
    yield f"<section><h2>Row {i}: {escape(row.label)}</h2>"
    yield f"<p class='about'>robot {escape(row.embodiment)}, episode {row.episode}, frame {row.frame}</p>"
    yield f"<p class='said'>{escape(row.instruction)}</p><div class='views'>"
    for name, image in row.views.items():
        inside = (
            "<div class='none'>missing</div>" if image is None else f"<img src='{inline(image, exact=True)}'>"
        )
        size = "" if image is None else f", {image.shape[1]} x {image.shape[0]}"
        yield f"<figure>{inside}<figcaption>{escape(name)}{size}</figcaption></figure>"
    yield "</div>"
    if row.prompt:
        yield f"<h2>Prompt</h2><div class='prompt'>{escape(row.prompt)}</div>"
    if row.model_state:
        yield "<h2>State</h2>" + "".join(_state(row))
    yield f"<h2>Actions</h2><p class='about'>{mask_of(row)}; un-normalised, they are within {row.apart:.2g} "
    yield f"of the recorded.</p><p class='about'>{_mask(row.mask)} a column a step, a row a dim; green counts"
    yield "</p>"
    yield "<div class='both'><h3>recorded</h3><h3>what the policy learns</h3>"
    counted = int(row.mask.any(axis=1).sum())
    for left, right in _pairs(row.action, row.model_action):
        yield "<div>" + "".join(_chunk(left, counted, row, True)) + "</div>"
        yield "<div>" + "".join(_chunk(right, counted, row, False)) + "</div>"
    yield "</div></section>"


def _pairs(a: Sequence[Part], b: Sequence[Part]) -> Iterator[tuple[Part | None, Part | None]]:
    own = {part.group.name: part for part in b}
    for part in a:
        yield part, own.pop(part.group.name, None)
    yield from ((None, part) for part in own.values())


def _state(row: ShownRow) -> Iterator[str]:
    yield "<table><tr><th>group</th><th>recorded</th><th>unit</th><th>policy</th></tr>"
    for left, right in _pairs(row.state, row.model_state):
        group = (left or right or row.model_state[0]).group
        cells = (_numbers(left), "" if left is None else escape(left.group.unit), _numbers(right))
        yield f"<tr><td>{escape(group.name)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table>"


def _numbers(part: Part | None) -> str:
    return "" if part is None else " ".join(f"{value:.4g}" for value in part.values)


def _chunk(part: Part | None, counted: int, row: ShownRow, recorded: bool) -> Iterator[str]:
    """The steps that count of a group, with a key to its dims."""
    if part is None or not counted:
        return
    names = [
        f"{part.group.name}[{d}]" if part.group.dim > 1 else part.group.name for d in range(part.group.dim)
    ]
    unit = part.group.unit if recorded else "normalised"
    unit = "unit unknown" if unit == "unknown" else unit
    seconds = np.arange(counted) / row.control_hz
    yield curves(part.values[:counted], seconds, names, f"value ({unit})", width=_WIDTH)
    keys = "".join(f"<i style='background:{colour(d)[0]}'></i>{escape(n)}" for d, n in enumerate(names))
    yield f"<div class='keys'>{keys}</div>"


def _mask(mask: Bool) -> str:
    """``[T, A]`` as squares, a column a step; wide and long chunks get smaller ones."""
    steps, dims = mask.shape
    cell = max(2, min(_CELL, 500 // steps, 160 // dims))
    parts = [f"<svg class='mask' style='width:{steps * cell}px' viewBox='0 0 {steps * cell} {dims * cell}'>"]
    for step in range(steps):
        for dim in range(dims):
            kind = "counts" if mask[step, dim] else "out"
            parts.append(
                f"<rect class='{kind}' x='{step * cell}' y='{dim * cell}' width='{cell - 1}' "
                f"height='{cell - 1}'/>"
            )
    return "".join([*parts, "</svg>"])
