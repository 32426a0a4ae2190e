"""The table of an ablation: one line a variant, as Markdown, CSV and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_train.ablate.figure import draw_figure
from vla_train.ablate.intervals import Estimate, estimate
from vla_train.ablate.plan import Plan
from vla_train.ablate.rows import Row
from vla_train.checkpointing.small_files import write_text
from vla_train.report._rollout import wilson

NONE = "-"
MEASURES = ("action_error", "samples_per_s", "latency_p50_ms")


@dataclass(frozen=True)
class Success:
    """Closed-loop episodes of all seeds (at least one), and the 95 % Wilson interval of their rate."""

    successes: int
    episodes: int
    interval: tuple[float, float]

    @property
    def rate(self) -> float:
        return self.successes / self.episodes


@dataclass(frozen=True)
class Line:
    """One variant: its finished rows put together, and how many of its runs failed.

    ``difference``: of its action error to the first variant's, over the seeds that both finished; None for
    the first variant itself, and without such a seed.
    """

    variant: str
    rows: Sequence[Row]
    failed: Sequence[Row]
    measures: Mapping[str, Estimate | None]
    difference: Estimate | None
    success: Success | None

    @property
    def parameters(self) -> int | None:
        return self.rows[0].parameters if self.rows else None

    @property
    def trainable(self) -> int | None:
        return self.rows[0].trainable if self.rows else None


def make_lines(rows: Sequence[Row]) -> list[Line]:
    """Variants in the order of the rows."""
    lines: list[Line] = []
    for name in dict.fromkeys(row.variant for row in rows):
        mine = [row for row in rows if row.variant == name]
        done = sorted((row for row in mine if row.status == "finished"), key=lambda row: row.seed)
        measures = {}
        for key in MEASURES:
            values = [getattr(row, key) for row in done]
            measures[key] = estimate([value for value in values if value is not None])
        counted = [row.success for row in done if row.success is not None]
        success = None
        successes, episodes = (sum(c[k] for c in counted) for k in ("successes", "episodes"))
        if episodes:
            success = Success(successes, episodes, wilson(successes, episodes))
        difference = _paired(done, lines[0].rows) if lines else None
        failed = [r for r in mine if r.status == "failed"]
        lines.append(Line(name, done, failed, measures, difference, success))
    return lines


def _paired(rows: Sequence[Row], first: Sequence[Row]) -> Estimate | None:
    """Action error minus the first variant's, seed by seed."""
    base = {row.seed: row.action_error for row in first}
    pairs = [(row.action_error, base.get(row.seed)) for row in rows]
    return estimate([a - b for a, b in pairs if a is not None and b is not None], signed=True)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def _measure(value: Estimate | None) -> str:
    if value is None:
        return NONE
    if value.low is None or value.high is None:
        return _number(value.mean)
    return f"{_number(value.mean)} [{_number(value.low)}, {_number(value.high)}]"


def _success(value: Success | None) -> str:
    if value is None:
        return NONE
    low, high = value.interval
    rate = f"{100 * value.rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{rate} ({value.successes}/{value.episodes})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def markdown(lines: Sequence[Line], notes: Sequence[str]) -> str:
    """The table with what its numbers mean."""
    head = [
        "variant",
        "seeds",
        "action error",
        "minus the first",
        "success",
        "parameters",
        "trained",
        "samples/s",
        "act() p50 ms",
    ]
    out = ["# Ablation", "", *(f"- {note}" for note in notes), "", "| " + " | ".join(head) + " |"]
    out.append("|---" + "|---:" * (len(head) - 1) + "|")
    for line in lines:
        seeds = ", ".join(str(row.seed) for row in line.rows) or NONE
        cells = [
            _cell(line.variant),
            seeds + (f" ({len(line.failed)} failed)" if line.failed else ""),
            _measure(line.measures["action_error"]),
            _measure(line.difference),
            _success(line.success),
            NONE if line.parameters is None else f"{line.parameters:,}",
            NONE if line.trainable is None else f"{line.trainable:,}",
            _measure(line.measures["samples_per_s"]),
            _measure(line.measures["latency_p50_ms"]),
        ]
        out.append("| " + " | ".join(cells) + " |")
    failed = [row for line in lines for row in line.failed]
    if failed:
        out += ["", "Failed:", "", *(f"- {row.name}: {row.error}" for row in failed)]
    out += ["", "![Action error and success of each variant](ablation.svg)", ""]
    return "\n".join(out)


def to_csv(lines: Sequence[Line]) -> str:
    """The same numbers unrounded; empty where there is none."""
    file = io.StringIO()
    columns = ["variant", "seeds", "failed", "parameters", "trainable"]
    columns += [f"{key}_{what}" for key in MEASURES for what in ("mean", "low", "high", "n")]
    columns += [f"action_error_minus_first_{what}" for what in ("mean", "low", "high", "n")]
    columns += ["successes", "episodes", "success_rate", "success_low", "success_high"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for line in lines:
        cells: list[object] = [line.variant, " ".join(str(row.seed) for row in line.rows), len(line.failed)]
        cells += [line.parameters, line.trainable]
        for e in (*(line.measures[key] for key in MEASURES), line.difference):
            cells += [None] * 4 if e is None else [e.mean, e.low, e.high, e.n]
        s = line.success
        cells += [None] * 5 if s is None else [s.successes, s.episodes, s.rate, *s.interval]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return file.getvalue()


def _notes(rows: Sequence[Row], plan: Plan | None) -> list[str]:
    notes = []
    if plan is not None:
        overrides = f", with `{' '.join(plan.overrides)}`" if plan.overrides else ""
        notes.append("Base: " + ", ".join(f"`{path}`" for path in plan.base) + overrides + ".")
    notes += [
        "Mean over seeds [95 % Student t interval over seeds]; a single seed has no interval.",
        "Action error: mean absolute error of predicted against recorded held-out chunks, in the model's "
        "normalised units; lower is better. Success: episodes of all seeds together [95 % Wilson interval].",
        "Minus the first: difference of the action error to the first variant's, seed by seed [95 % t "
        "interval]; below 0 is better.",
        "Samples/s: training, median over the logged intervals. act(): one observation, raw images to "
        "actions in real units, median of 20 calls.",
    ]
    jobs = max((row.jobs for row in rows), default=1)
    if jobs > 1:
        notes.append(
            f"Up to {jobs} runs shared the machine: samples/s and act() are those of a busy machine."
        )
    devices = sorted({row.device for row in rows if row.device})
    if len(devices) == 1:
        notes.append(f"Device: {devices[0]}.")
    elif devices:
        notes.append(f"Devices: {', '.join(devices)}. Times of different devices do not compare.")
    return notes


def write_tables(rows: Sequence[Row], folder: Path, plan: Plan | None = None) -> None:
    """Write ``table.md``, ``table.csv`` and ``ablation.svg`` into ``folder``."""
    lines = make_lines(rows)
    write_text(folder / "table.md", markdown(lines, _notes(rows, plan)))
    write_text(folder / "table.csv", to_csv(lines))
    points = {line.variant: [row.action_error for row in line.rows] for line in lines}
    rates = {line.variant: (line.success.rate, *line.success.interval)
             for line in lines if line.success}  # fmt: skip
    errors = {line.variant: line.measures["action_error"] for line in lines}
    differences = {line.variant: line.difference for line in lines}
    episodes = {line.variant: line.success.episodes for line in lines if line.success}
    write_text(folder / "ablation.svg", draw_figure(errors, points, differences, rates, episodes))
