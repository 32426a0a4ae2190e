"""The table of MT50: success by tier of difficulty and by task, with the held-out phrasings beside.

    uv run python benchmarks/closed_loop/mt50/table.py --results runs/mt50/results --out table.md

Reads ``RUN/{train,heldout}/results.json`` below ``--results``, one RUN a training seed. Tiers: Seo et al.,
Masked World Models (arXiv 2206.14244).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_serve.rates import bootstrap, mean_of_tasks, wilson

TIERS = {
    "easy": """
        button-press button-press-topdown button-press-topdown-wall button-press-wall coffee-button dial-turn
        door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close faucet-open
        handle-press handle-press-side handle-pull handle-pull-side lever-pull peg-unplug-side plate-slide
        plate-slide-back plate-slide-back-side plate-slide-side reach reach-wall window-close window-open
    """,
    "medium": """
        basketball bin-picking box-close coffee-pull coffee-push hammer peg-insert-side push-wall soccer sweep
        sweep-into
    """,
    "hard": "assembly hand-insert pick-out-of-hole pick-place push push-back",
    "very hard": "disassemble pick-place-wall shelf-place stick-pull stick-push",
}
KINDS = {"train": "phrasings of the demonstrations", "heldout": "held-out phrasings"}


class Results:
    """All runs with one kind of phrasing: outcomes ``[R, T, E]`` (1, 0, NaN) of ``tasks``."""

    def __init__(self, files: Sequence[Path]) -> None:
        read: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
        self.settings = [one["settings"] for one in read]
        self.wall_s = [float(one["wall_s"]) for one in read]
        self.latency = [one["total"]["latency_ms"] for one in read]
        self.tasks = [node["task"] for node in read[0]["tasks"]]
        self.outcomes = np.stack([_outcomes(one, self.tasks) for one in read])

    def of(self, tasks: Sequence[str]) -> NDArray[np.float64]:
        """Outcomes of some tasks."""
        return self.outcomes[:, [self.tasks.index(task) for task in tasks]]


def _outcomes(results: dict[str, Any], tasks: Sequence[str]) -> NDArray[np.float64]:
    seeds = range(results["settings"]["seed"], results["settings"]["seed"] + results["settings"]["episodes"])
    out = np.full((len(tasks), len(seeds)), np.nan)
    for episode in results["episodes"]:
        if episode["success"] is not None:
            out[tasks.index(episode["task"]), episode["seed"] - seeds.start] = episode["success"]
    return out


def _rate(outcomes: NDArray[np.float64]) -> str:
    mean, interval = mean_of_tasks(outcomes), bootstrap(outcomes)
    if mean is None or interval is None:
        return "-"
    return f"{100 * mean:.1f} ({100 * interval[0]:.0f}-{100 * interval[1]:.0f})"


def _cell(outcomes: NDArray[np.float64]) -> str:
    ended = outcomes[~np.isnan(outcomes)]
    low, high = wilson(int(ended.sum()), len(ended))
    return f"{int(ended.sum())}/{len(ended)} ({100 * low:.0f}-{100 * high:.0f})"


def render(kinds: dict[str, Results]) -> str:
    """Markdown: tiers with bootstrap intervals, tasks with Wilson intervals, how it was run."""
    first = next(iter(kinds.values()))
    titles = [KINDS[kind] for kind in kinds]
    tiers = {tier: [t for t in names.split() if t in first.tasks] for tier, names in TIERS.items()}
    lines = ["| tier | tasks | " + " | ".join(f"{title}, %" for title in titles) + " |"]
    lines.append("|---|---|" + "---|" * len(kinds))
    rows = {**{tier: tasks for tier, tasks in tiers.items() if tasks}, "all": first.tasks}
    for tier, tasks in rows.items():
        cells = " | ".join(_rate(results.of(tasks)) for results in kinds.values())
        lines.append(f"| {tier} | {len(tasks)} | {cells} |")
    means = [[f"{100 * (mean_of_tasks(run[None]) or 0):.1f}" for run in r.outcomes] for r in kinds.values()]
    lines.append("| each training seed | | " + " | ".join(", ".join(run) for run in means) + " |")
    lines += ["", "| task | tier | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(kinds)]
    for tier, tasks in tiers.items():
        for task in tasks:
            cells = " | ".join(_cell(results.of([task])) for results in kinds.values())
            lines.append(f"| {task} | {tier} | {cells} |")
    lines += [
        "",
        "In brackets 95 % intervals: bootstrap over training seeds, tasks and episodes, Wilson for a task.",
        "",
    ]
    for kind, results in kinds.items():
        one, p50 = (
            results.settings[0],
            [f"{latency['p50']:.1f}" for latency in results.latency if latency["p50"]],
        )
        lines.append(
            f"- {KINDS[kind]}: {len(results.settings)} training seeds x {len(results.tasks)} tasks x "
            f"{one['episodes']} starts from seed {one['seed']}, {one['executed_steps']} actions a request, "
            f"wall time {', '.join(f'{s:.0f}' for s in results.wall_s)} s, latency p50 {', '.join(p50)} ms"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, required=True, help="directory with RUN/{train,heldout}/results.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    args = parser.parse_args()
    kinds = {}
    for kind in KINDS:
        files = sorted(args.results.glob(f"*/{kind}/results.json"))
        if files:
            kinds[kind] = Results(files)
    if not kinds:
        parser.exit(2, f"{args.results}: no RUN/train/results.json; run 3_evaluate.sh\n")
    text = render(kinds)
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
