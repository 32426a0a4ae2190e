"""The table of LIBERO: success by task beside LIBERO-PRO's variants, another task's sentence and the expert.

    uv run python benchmarks/closed_loop/libero/table.py --results runs/closed_libero/results --out table.md
    uv run python benchmarks/closed_loop/libero/table.py --others libero_spatial_0 libero_spatial_1

Reads ``RUN/{plain,language,swap,other_TASK}/results.json`` and ``expert/{plain,swap}/results.json`` below
``--results``, one RUN a training seed. ``--others`` prints which task's sentence asks for the second bowl of
each task's scene, where that task is named too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.envs._libero_tasks import find
from vla_serve.rates import bootstrap, mean_of_tasks, wilson

POLICY = {"plain": "plain", "language": "reworded", "swap": "objects swapped"}
EXPERT = {"plain": "expert, plain", "swap": "expert, swapped"}
SECOND = "_second"
INTERVALS = "In brackets 95 % intervals: Wilson for counts, bootstrap over runs, tasks and starts for means."
Results = dict[str, Any]
Outcomes = NDArray[np.float64]


def others(tasks: Sequence[str]) -> dict[str, str]:
    """Task -> the one of ``tasks`` whose sentence asks for the second bowl of its scene."""
    second = {task: find(task, "none").second for task in tasks}
    return {task: found[0] for task, found in second.items() if found is not None and found[0] in tasks}


def read(files: Iterable[Path]) -> list[Results]:
    """What is there of ``files``."""
    return [json.loads(file.read_text()) for file in files if file.exists()]


def outcomes(results: Sequence[Results], tasks: Sequence[str]) -> Outcomes:
    """``[R, T, E]``: 1, 0, NaN where an episode did not end."""
    settings = results[0]["settings"]
    out = np.full((len(results), len(tasks), settings["episodes"]), np.nan)
    for run, one in enumerate(results):
        for episode in one["episodes"]:
            if episode["success"] is not None:
                at = tasks.index(episode["task"]), episode["seed"] - settings["seed"]
                out[run][at] = episode["success"]
    return out


def rate(successes: int, trials: int) -> str:
    """Count with its Wilson interval in percent."""
    if not trials:
        return "-"
    low, high = wilson(successes, trials)
    return f"{successes}/{trials} ({100 * low:.0f}-{100 * high:.0f})"


def column(results: Sequence[Results], tasks: Sequence[str]) -> list[str]:
    """A cell for each task, and the mean."""
    if not results:
        return ["-"] * (len(tasks) + 1)
    cells = outcomes(results, tasks)
    ended = ~np.isnan(cells)
    each = [rate(int(np.nansum(cells[:, t])), int(ended[:, t].sum())) for t in range(len(tasks))]
    mean, interval = mean_of_tasks(cells), bootstrap(cells)
    if mean is None or interval is None:
        return [*each, "-"]
    return [*each, f"**{100 * mean:.0f} %** ({100 * interval[0]:.0f}-{100 * interval[1]:.0f})"]


def obeyed(results: Sequence[Results]) -> tuple[int, int, int]:
    """With another task's sentence: how often the named bowl came, how often the usual, of how many."""
    named = usual = ended = 0
    for one in results:
        said = one["settings"]["instruction_from"]
        for episode in one["episodes"]:
            if episode["success"] is not None:
                ended += 1
                named += said in episode["achieved"]
                usual += episode["success"]
    return named, usual, ended


def render(root: Path) -> str:
    """Markdown: the tables of both kinds of demonstrations."""
    runs = sorted({file.parent.parent.name for file in root.glob("*/plain/results.json")} - {"expert"})
    groups = {
        "One sentence a scene": [run for run in runs if not run.endswith(SECOND)],
        "Second bowls among the demonstrations": [run for run in runs if run.endswith(SECOND)],
    }
    parts = [f"### {title}\n\n{_group(root, of)}" for title, of in groups.items() if of]
    return "\n".join((*parts, INTERVALS)) + "\n"


def _group(root: Path, runs: Sequence[str]) -> str:
    """The table of tasks, that of the other sentences, and how they were run."""
    policy = {kind: read(root / run / kind / "results.json" for run in runs) for kind in POLICY}
    expert = {kind: read([root / "expert" / kind / "results.json"]) for kind in EXPERT}
    tasks = [node["task"] for node in policy["plain"][0]["tasks"]]
    swapped = {
        task: (said, read(root / run / f"other_{task}" / "results.json" for run in runs))
        for task, said in others(tasks).items()
    }
    named_results = {
        **{POLICY[kind]: results for kind, results in policy.items()},
        **{EXPERT[kind]: results for kind, results in expert.items()},
    }
    columns = [column(results, tasks) for results in named_results.values()]
    lines = ["| task | " + " | ".join(named_results) + " |", "|---|" + "---|" * len(named_results)]
    for name, *cells in zip([*tasks, "mean"], *columns, strict=True):
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| scene of | told the sentence of | brings the bowl that is named | brings the usual one |",
    ]
    lines.append("|---|---|---|---|")
    for task, (said, results) in swapped.items():
        named, usual, ended = obeyed(results)
        lines.append(f"| {task} | {said} | {rate(named, ended)} | {rate(usual, ended)} |")
    named, usual, ended = obeyed([one for _, results in swapped.values() for one in results])
    lines += [f"| all | | {rate(named, ended)} | {rate(usual, ended)} |", ""]
    named_results |= {f"{task}, told {said}": results for task, (said, results) in swapped.items()}
    return (
        "\n".join([*lines, *(how(title, results) for title, results in named_results.items() if results)])
        + "\n"
    )


def how(title: str, results: Sequence[Results]) -> str:
    """A line on how one column was run."""
    first = results[0]["settings"]
    last = first["seed"] + first["episodes"] - 1
    text = f"- {title}: official initial states {first['seed']} to {last}"
    text += f", {first['executed_steps']} actions a request"
    walls = ", ".join(f"{one['wall_s']:.0f}" for one in results)
    steps = [e["steps"] for one in results for e in one["episodes"] if e["success"]]
    text += f", wall time {walls} s"
    if steps:
        text += f", {np.mean(steps):.0f} steps a success"
    p50 = [one["total"]["latency_ms"]["p50"] for one in results]
    if all(p50):
        text += f", latency p50 {', '.join(f'{ms:.0f}' for ms in p50)} ms"
    errors = sum(e["success"] is None for one in results for e in one["episodes"])
    return text + (f", {errors} episodes did not end" if errors else "")


def main() -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="directory with RUN/plain/results.json")
    parser.add_argument("--out", type=Path, help="markdown file to write")
    parser.add_argument(
        "--others", nargs="+", metavar="TASK", help="print TASK and whose sentence it is told"
    )
    args = parser.parse_args()
    if args.others:
        for task, said in others(args.others).items():
            print(task, said)
        return
    if args.results is None or args.out is None:
        parser.error("--results and --out, or --others")
    if not list(args.results.glob("*/plain/results.json")):
        parser.exit(2, f"{args.results}: no RUN/plain/results.json; run 3_evaluate.sh\n")
    text = render(args.results)
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
