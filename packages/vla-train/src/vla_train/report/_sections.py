"""The sections of the report, in reading order."""

from __future__ import annotations

import numpy as np

from vla_train.report._closed_loop import closed_loop
from vla_train.report._figures import prediction_figures, training_curves
from vla_train.report._header import header
from vla_train.report._page import Markup, code, details, facts, note, section, table, tag
from vla_train.report._run import Run
from vla_train.report._text import (
    NONE,
    count,
    label,
    number,
    percent,
    plain,
    unit,
)

_NO_VALIDATION = (
    "Nothing was validated: hold episodes out with ",
    code("datasets.val_fraction"),
    " and set ",
    code("trainer.val_every"),
    " to at most ",
    code("trainer.max_steps"),
    ".",
)
_NO_INFO = ("There is no ", code("run.json"), " in the run folder; vla-train writes it when training starts.")


def sections(run: Run) -> list[Markup]:
    """Everything between the page's top and its end."""
    parts = [
        closed_loop(run),
        _training(run),
        _predictions(run),
        _error_table(run),
        _data(run),
        _model(run),
        _reproduce(run),
    ]
    return [header(run), *parts]


def _training(run: Run) -> Markup:
    parts = [tag("div", *training_curves(run.metrics), class_="charts")]
    if not run.metrics.names("val/"):
        parts.append(note("There is no validation loss and no action error. ", *_NO_VALIDATION))
    if run.metrics.unreadable:
        lines = "1 line" if run.metrics.unreadable == 1 else f"{run.metrics.unreadable} lines"
        parts.append(note(lines, " of ", code("metrics.jsonl"), " could not be read and was left out."))
    return section("training", "Training", *parts)


def _predictions(run: Run) -> Markup:
    title = "Predicted against recorded actions"
    if run.predictions is None:
        why = note(
            "There is no ",
            code("predictions.npz"),
            ": vla-train writes it at the end of a run that holds episodes out (",
            code("datasets.val_fraction"),
            ").",
        )
        return section("predictions", title, why)
    hz = run.info.get("control_hz")
    known = float(hz) if isinstance(hz, int | float) and hz > 0 else None
    explanation = note(
        "Held-out episodes, never trained on. Each chunk starts at its dot, where the policy saw the frame."
    )
    return section("predictions", title, explanation, *prediction_figures(run.predictions, known))


def _error_table(run: Run) -> Markup:
    title = "Error per action dim"
    found = {name.removeprefix("val/mae/"): name for name in run.metrics.names("val/mae/")}
    if not found:
        return section("dims", title, note(*_NO_VALIDATION))
    units = run.dims()
    ordered = [dim for dim in units if dim in found] + [dim for dim in found if dim not in units]
    spans = _spans(run)
    head, align = ["dim", "unit", "last", "best"], "llrr"
    if spans:
        head, align = [*head, "recorded range", "last / range"], align + "rr"
    rows: list[list[str]] = []
    for dim in ordered:
        steps, values = run.metrics.curve(found[dim])
        known = np.isfinite(values)
        best = NONE
        if known.any():
            at = int(np.flatnonzero(known)[np.argmin(values[known])])
            best = f"{number(float(values[at]))} (step {count(float(steps[at]))})"
        last = float(values[-1])
        row: list[str] = [label(dim), unit(units.get(dim, "")) or NONE, number(last), best]
        if spans:
            low, high = spans.get(dim, (0.0, 0.0))
            has = dim in spans and high > low
            row += [_range(low, high) if dim in spans else NONE]
            row += [percent(last / (high - low), 1) if has else NONE]
        rows.append(row)
    text = "Mean absolute error over whole chunks of held-out episodes, in real units."
    if spans:
        text += " The recorded range spans the 1st to the 99th percentile of the episodes above."
    return section("dims", title, tag("div", table(head, rows, align), note(text), class_="card"))


def _range(low: float, high: float) -> str:
    # A bound that is nothing beside the other is shown as 0, not as 1e-13.
    least = 1e-4 * (high - low)
    low, high = (0.0 if abs(bound) < least else bound for bound in (low, high))
    return f"{plain(low)} to {plain(high)}"


def _spans(run: Run) -> dict[str, tuple[float, float]]:
    """Dim -> (1st, 99th percentile) of the recorded actions."""
    if run.predictions is None:
        return {}
    low, high = np.nanpercentile(run.predictions.recorded, [1, 99], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(run.predictions.names, low, high, strict=True)}


def _listed(value: object) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else NONE


def _data(run: Run) -> Markup:
    data = run.part("data")
    if not data:
        return section("data", "Data set", note(*_NO_INFO))
    split = table(
        ["", "episodes", "samples"],
        [
            ["training", count(data.get("episodes_train")), count(data.get("samples_train"))],
            ["held out", count(data.get("episodes_val")), count(data.get("samples_val"))],
        ],
        "lrr",
    )
    groups = [
        f"{label(str(group.get('name')))} ({group.get('dim')}"
        + (f", {unit(str(group['unit']))}" if unit(str(group.get("unit", ""))) else "")
        + ")"
        for group in run.info.get("action_groups") or ()
    ]
    pairs = [("cameras", _listed(data.get("cameras")))]
    if data.get("tasks"):
        pairs.append(("tasks", _listed(data.get("tasks"))))
    pairs.append(("actions", ", ".join(groups) or NONE))
    hz = run.info.get("control_hz")
    pairs.append(("control rate", NONE if hz is None else f"{plain(hz)} Hz"))
    cards = [tag("div", part, class_="card") for part in (split, facts(pairs))]
    return section("data", "Data set", tag("div", *cards, class_="halves"))


def _model(run: Run) -> Markup:
    parameters = run.part("parameters")
    total = parameters.get("total")
    parts = parameters.get("parts") or {}
    if not isinstance(total, int) or not total:
        return section("model", "Model", note(*_NO_INFO))
    rows: list[list[str]] = [
        [
            str(name),
            tag("div", tag("div", style=f"width:{100 * size / total:.2f}%"), class_="share"),
            count(size),
            percent(size / total, 1),
        ]
        for name, size in parts.items()
    ]
    rows.append([tag("b", "total"), "", tag("b", count(total)), ""])
    rows.append(["trainable", "", count(parameters.get("trainable")), ""])
    body = table(["part", "", "parameters", "share"], rows, "llrr")
    if run.info.get("from_scratch"):
        start = note("The backbone started from random weights: no pretrained ones are used.")
    else:
        start = note("The backbone started from the weights that ", code("framework.vlm"), " names.")
    return section("model", "Model", tag("div", body, start, class_="card"))


def _reproduce(run: Run) -> Markup:
    command = run.info.get("command")
    parts: list[str] = []
    if command:
        parts.append(tag("div", tag("pre", code(str(command)), class_="wrap"), class_="card"))
    packages = run.part("packages")
    if packages:
        rows = [[str(name), str(version)] for name, version in packages.items()]
        parts.append(details("Package versions", table(["package", "version"], rows, "ll")))
    if not command and not packages:
        parts.append(note(*_NO_INFO))
    if run.config is None:
        parts.append(note("There is no ", code("config.yaml"), "; vla-train writes it when training starts."))
    else:
        parts.append(details("Resolved config", tag("pre", code(run.config))))
    return section("reproduce", "Reproduce", *parts)
