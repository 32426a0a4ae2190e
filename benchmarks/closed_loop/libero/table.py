"""The table of LIBERO: success by task beside LIBERO-PRO's variants, another task's sentence and the expert.

    uv run python benchmarks/closed_loop/libero/table.py --results runs/closed_libero/results --out table.md
    uv run python benchmarks/closed_loop/libero/table.py --others libero_spatial_0 libero_spatial_1

Reads ``RUN/{plain,language,swap,other_TASK_SAID}/results.json`` and ``expert/{plain,swap}/results.json``
below ``--results``, one RUN a training seed. ``--others`` prints TASK and SAID: which of the tasks that are
named ask for something else in each one's scene (a second bowl, another thing on the floor).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
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
INTERVALS = (
    "In brackets 95 % intervals: Wilson for counts, bootstrap over runs, tasks and starts for means (Wilson "
    "where all outcomes are alike)."
)
Results = dict[str, Any]
Outcomes = NDArray[np.float64]


def others(tasks: Sequence[str]) -> list[tuple[str, str]]:
    """Each of ``tasks`` with every other one of them whose sentence fits its scene."""
    return [(task, said) for task in tasks for said in find(task, "none").others if said in tasks]


def read(files: Iterable[Path]) -> list[Results]:
    """What is there of ``files``, of those in which an episode ended."""
    found = [json.loads(file.read_text()) for file in files if file.exists()]
    return [one for one in found if one["episodes"]]


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
    """A cell for each task, and the mean, of one or more results."""
    cells = outcomes(results, tasks)
    ended = ~np.isnan(cells)
    each = [rate(int(np.nansum(cells[:, t])), int(ended[:, t].sum())) for t in range(len(tasks))]
    mean, interval = mean_of_tasks(cells), bootstrap(cells)
    if mean is None or interval is None:
        return [*each, "-"]
    return [*each, f"**{100 * mean:.0f} %** ({100 * interval[0]:.0f}-{100 * interval[1]:.0f})"]


def obeyed(results: Sequence[Results]) -> tuple[int, int, int, int]:
    """With another task's sentence: how often the named object came, how often the usual, how often a third
    without these, of how many."""
    named = usual = third = ended = 0
    for one in results:
        said = one["settings"]["instruction_from"]
        for episode in one["episodes"]:
            if episode["success"] is not None:
                ended += 1
                named += said in episode["achieved"]
                usual += episode["success"]
                third += bool(episode["achieved"]) and not ({said, episode["task"]} & {*episode["achieved"]})
    return named, usual, third, ended


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
        (task, said): read(root / run / f"other_{task}_{said}" / "results.json" for run in runs)
        for task, said in others(tasks)
    }
    named_results = {
        **{POLICY[kind]: results for kind, results in policy.items()},
        **{EXPERT[kind]: results for kind, results in expert.items()},
    }
    named_results = {title: results for title, results in named_results.items() if results}
    columns = [column(results, tasks) for results in named_results.values()]
    lines = ["| task | " + " | ".join(named_results) + " |", "|---|" + "---|" * len(named_results)]
    for name, *cells in zip([*tasks, "mean"], *columns, strict=True):
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    rows = [(*pair, told) for pair, told in swapped.items() if told]
    if rows:
        lines += _told(tasks, rows)
    lines.append("")
    named_results |= {f"{task}, told {said}": told for task, said, told in rows}
    return "\n".join([*lines, *(how(title, results) for title, results in named_results.items())]) + "\n"


def _told(tasks: Sequence[str], rows: Sequence[tuple[str, str, list[Results]]]) -> list[str]:
    """The table of scenes that were told another task's sentence."""
    # Of a second bowl, that or the usual one; of six things on the floor, a third as well.
    thirds = any(len(find(task, "none").others) > 1 for task in tasks)
    titles = ["brings what is named", "brings the usual", *(["brings a third"] if thirds else [])]
    lines = ["", "| scene of | told the sentence of | " + " | ".join(titles) + " |"]
    lines.append("|---|---|" + "---|" * len(titles))
    everything = [one for *_, told in rows for one in told]
    for task, said, told in [*rows, ("all", "any", everything)]:
        *counts, ended = obeyed(told)
        cells = [rate(count, ended) for count in counts[: len(titles)]]
        lines.append(f"| {task} | {said} | " + " | ".join(cells) + " |")
    return lines


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
    text += _instead(results)
    planned = sum(len(one["tasks"]) * one["settings"]["episodes"] for one in results)
    ended = sum(e["success"] is not None for one in results for e in one["episodes"])
    return text + (f", {planned - ended} of {planned} episodes did not end" if ended < planned else "")


def _instead(results: Sequence[Results]) -> str:
    """What was brought that was neither named nor usual: which task's object, in whose scene, how often."""
    brought: Counter[str] = Counter()
    for one in results:
        for episode in one["episodes"]:
            others = {*episode["achieved"]} - {episode["task"], one["settings"].get("instruction_from")}
            brought.update(f"that of {other} in the scene of {episode['task']}" for other in others)
    return "".join(f", brought {what} {count} times" for what, count in sorted(brought.items()))


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
        for task, said in others(args.others):
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
