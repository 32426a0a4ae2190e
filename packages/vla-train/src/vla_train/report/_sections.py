"""The sections of the report, in reading order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from vla_train.evaluation.against_mean import ERROR, MEAN
from vla_train.report._closed_loop import closed_loop
from vla_train.report._figures import prediction_figures, training_curves, varying
from vla_train.report._header import header, verdict
from vla_train.report._made_with import of_run
from vla_train.report._media import seen_grid
from vla_train.report._page import Markup, code, details, facts, note, section, table, tag
from vla_train.report._run import Predictions, Run
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
        _seen(run),
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
        "Held-out episodes, never trained on. Each chunk starts at its dot, where the policy saw the frame.",
        *_not_drawn(run.predictions),
    )
    return section("predictions", title, explanation, *prediction_figures(run.predictions, known))


def _not_drawn(predictions: Predictions) -> list[str]:
    """Which dims have no panel."""
    drawn = varying(predictions)
    still = [label(name) for d, name in enumerate(predictions.names) if d not in drawn]
    return [f" Constant, not drawn: {', '.join(still)}."] if still else []


def _error_table(run: Run) -> Markup:
    title = "Error per action dim"
    found = {name.removeprefix(ERROR): name for name in run.metrics.names(ERROR)}
    if not found:
        return section("dims", title, note(*_NO_VALIDATION))
    units = run.dims()
    ordered = [dim for dim in units if dim in found] + [dim for dim in found if dim not in units]
    beaten = verdict(run.metrics)
    constant = [dim for dim in ordered if dim in (beaten.constant if beaten else ())]
    table_of = partial(_dims_table, run, units, found)
    varying = [dim for dim in ordered if dim not in constant]
    text = "Mean absolute error over whole chunks of held-out episodes, in real units."
    if run.predictions is not None:
        text += " The recorded range spans the 1st to the 99th percentile of the episodes above."
    parts: list[str] = []
    if beaten is not None:
        parts.append(tag("p", tag("b", f"{str(beaten)[0].upper()}{str(beaten)[1:]}.")))
        text += " Mean action: the error of always answering the mean action of the training data."
    body = [tag("div", *parts, table_of(varying), note(text), class_="card")]
    if constant:
        what = "1 dim that never changes" if len(constant) == 1 else f"{len(constant)} dims that never change"
        body.append(details(f"{what} in the held-out episodes", table_of(constant)))
    return section("dims", title, *body)


def _dims_table(run: Run, units: Mapping[str, str], found: Mapping[str, str], dims: Sequence[str]) -> Markup:
    spans = _spans(run)
    blind = {dim: run.metrics.last(f"{MEAN}{dim}") for dim in dims}
    head, align = ["dim", "unit", "last", "best"], "llrr"
    if any(value is not None for value in blind.values()):
        head, align = [*head, "mean action", "last / mean"], align + "rr"
    if spans:
        head, align = [*head, "recorded range", "last / range"], align + "rr"
    rows: list[list[str]] = []
    for dim in dims:
        steps, values = run.metrics.curve(found[dim])
        known = np.isfinite(values)
        best = NONE
        if known.any():
            at = int(np.flatnonzero(known)[np.argmin(values[known])])
            best = f"{number(float(values[at]))} (step {count(float(steps[at]))})"
        last = float(values[-1])
        row: list[str] = [label(dim), unit(units.get(dim, "")) or NONE, number(last), best]
        if "mean action" in head:
            mean = blind[dim]
            share = NONE
            if mean:
                share = tag("span", percent(last / mean), class_="yes" if last < mean else "no")
            row += [number(mean), share]
        if spans:
            low, high = spans.get(dim, (0.0, 0.0))
            has = dim in spans and high > low
            row += [_range(low, high) if dim in spans else NONE]
            row += [percent(last / (high - low), 1) if has else NONE]
        rows.append(row)
    return table(head, rows, align)


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


def _seen(run: Run) -> Markup:
    title = "What the policy sees"
    if not run.seen:
        why = note("There is no ", code("seen.npz"), " in the run folder; vla-train writes it as it starts.")
        return section("seen", title, why)
    text = (
        "Training samples after the transforms of the config, pixel by pixel, cameras in the policy's order."
    )
    return section("seen", title, tag("div", seen_grid(run.seen), note(text), class_="card"))


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
    if run.info.get("cpu"):
        parts.append(tag("div", of_run(run), class_="card"))
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
