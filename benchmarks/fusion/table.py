"""The comparison of fusions as a table and a plot.

    uv run python benchmarks/fusion/table.py --results benchmarks/fusion/results.jsonl --out benchmarks/fusion

Every variant plays the same starts and sees the same held-out episodes as the one it is compared with, so
differences are paired: 95 % intervals from 10,000 bootstrap draws of training seeds and, within them, of
starts (or episodes). With three training seeds they are rough.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.float64]
WHERE = {"same": "training cameras", "shift": "shifted cameras"}
DRAWS = 10_000


def load(*paths: Path) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Variant -> training seed -> line, in the order of the files.

    Of several files a line of a later one goes before that of the same variant and seed, and only the
    variants of the last one are kept: its seeds join those that were measured before, and every difference is
    between runs of one recording.
    """
    lines: dict[str, dict[int, Mapping[str, Any]]] = {}
    kept: set[str] = set()
    for path in paths:
        kept = set()
        for text in path.read_text("utf-8").splitlines():
            line = json.loads(text)
            variant = line["variant"].removeprefix("fusion=")
            lines.setdefault(variant, {})[line["seed"]] = line
            kept.add(variant)
    return {variant: runs for variant, runs in lines.items() if variant in kept}


def scores(line: Mapping[str, Any], where: str, what: str) -> Array:
    """One number an episode, in an order that all lines share."""
    if what == "error":
        by_episode = line["errors"][f"held_{where}"]
        return np.array([by_episode[key] for key in sorted(by_episode, key=int)])
    by_task = line["success"][where]
    return np.concatenate([np.asarray(by_task[task], float) for task in sorted(by_task)])


def stack(runs: Mapping[int, Mapping[str, Any]], seeds: list[int], where: str, what: str) -> Array:
    """``[training seeds, episodes]``."""
    return np.stack([scores(runs[seed], where, what) for seed in seeds])


def interval(values: Array) -> tuple[float, float, float]:
    """Mean of ``[seeds, episodes]``, low, high; seeds and episodes are drawn anew, episodes jointly."""
    rng = np.random.default_rng(0)
    seeds, episodes = values.shape
    draws = np.empty(DRAWS)
    for i in range(DRAWS):
        chosen = rng.integers(seeds, size=seeds)
        draws[i] = values[chosen].mean(0)[rng.integers(episodes, size=episodes)].mean()
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def difference(
    lines: Mapping[str, Any], variant: str, base: str, where: str, what: str
) -> tuple[float, float, float] | None:
    """Variant minus base on the training seeds that both have."""
    if variant == base or base not in lines:
        return None
    seeds = sorted(lines[variant].keys() & lines[base].keys())
    if not seeds:
        return None
    return interval(stack(lines[variant], seeds, where, what) - stack(lines[base], seeds, where, what))


def cell(value: tuple[float, float, float] | None, scale: float, digits: int, signed: bool) -> str:
    """``mean [low, high]``."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    mean, low, high = (format(scale * x, f"{sign}.{digits}f") for x in value)
    return f"{mean} [{low}, {high}]"


def markdown(lines: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """The tables: action error, success, and success by task."""
    out = []
    for what, title, scale, digits in (
        (
            "error",
            "Action error on held-out episodes (in standard deviations of the actions; lower is better)",
            1,
            4,
        ),
        ("success", "Closed-loop success, % (higher is better)", 100, 1),
    ):
        out += [f"### {title}", "", "| fusion | seeds | episodes a cell | " + " | ".join(
            f"{name} | minus `none` | minus `mean_pool`" for name in WHERE.values()) + " |",
            "|---" + "|---:" * 8 + "|"]  # fmt: skip
        for variant, runs in lines.items():
            seeds = sorted(runs)
            count = stack(runs, seeds, "same", what).size
            cells = [variant, str(len(seeds)), str(count)]
            for where in WHERE:
                mean = stack(runs, seeds, where, what).mean()
                cells.append(f"{scale * mean:.{digits}f}")
                for base in ("none", "mean_pool"):
                    cells.append(cell(difference(lines, variant, base, where, what), scale, digits, True))
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    tasks = sorted(next(iter(next(iter(lines.values())).values()))["success"]["same"])
    out += ["### Success by task, % (training cameras / shifted cameras)", "",
            "| fusion | " + " | ".join(tasks) + " |", "|---" + "|---:" * len(tasks) + "|"]  # fmt: skip
    for variant, runs in lines.items():
        cells = []
        for task in tasks:
            rates = [np.mean([run["success"][w][task] for run in runs.values()]) for w in WHERE]
            cells.append(f"{100 * rates[0]:.0f} / {100 * rates[1]:.0f}")
        out.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def plot(lines: Mapping[str, Mapping[int, Mapping[str, Any]]], path: Path) -> None:
    """Success under both camera settings: a dot a training seed, a bar for the mean."""
    figure = Figure(figsize=(8, 0.5 + 0.42 * len(lines)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (where, title) in zip(axes, WHERE.items(), strict=True):
        for y, runs in enumerate(lines.values()):
            rates = [100 * scores(run, where, "success").mean() for run in runs.values()]
            axis.barh(y, np.mean(rates), color="#8fb1d1", height=0.6)
            axis.plot(rates, [y] * len(rates), "o", color="#1f4e79", markersize=4)
        axis.set_title(f"success %, {title}", fontsize=10, loc="left")
        axis.set_yticks(range(len(lines)), list(lines))
        axis.set_xlim(0, 103)
        axis.grid(axis="x", color="#d9d9d9", linewidth=0.7)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].invert_yaxis()
    # Text stays text; a fixed salt and no date make the bytes repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fusion"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Write ``table.md`` and ``success.svg``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="later files go before")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    lines = load(*args.results)
    (args.out / "table.md").write_text(markdown(lines))
    plot(lines, args.out / "success.svg")
    print((args.out / "table.md").read_text())


if __name__ == "__main__":
    main()
