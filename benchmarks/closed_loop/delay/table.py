"""Success against delay, a column for each way of bridging it.

    uv run python benchmarks/closed_loop/delay/table.py --results runs/delay/results --out table.md

Reads ``MODE_DELAY/results.json`` below ``--results``. Without a delay all ways but the ensembles are one:
``goes_on_0``. Differences are paired, start by start.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_serve.rollouts.compare import compare
from vla_serve.rollouts.resume import read_results

MODES = {
    "waits": "the robot waits, holding still",
    "goes_on": "goes on, each chunk planned afresh (naive)",
    "continues": "goes on, answers continue the chunk (RTC)",
    "ensemble": "goes on, actions are means of chunks (temporal ensembling)",
    "adaptive": "goes on, actions are means of chunks (adaptive ensembling)",
}
NAIVE = "goes_on"
_PLAIN = ("waits", "goes_on", "continues")
STEP_MS = 12.5  # Meta-World's control step
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


def _of(results: Results, mode: str, delay: int) -> Mapping[str, Any] | None:
    """Without a delay, nobody waits and nothing is continued."""
    if delay == 0 and mode in ("waits", "continues"):
        mode = NAIVE
    return results.get(mode, {}).get(delay)


def _percent(number: float, signed: bool = False) -> str:
    return f"{100 * number:+.0f}" if signed else f"{100 * number:.0f}"


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    paired = compare(first, second)
    low, high = paired["interval"]
    return (
        f"{_percent(paired['difference'], True)} ({_percent(low, True)} to {_percent(high, True)}), "
        f"{paired['second_only']} won, {paired['first_only']} lost"
    )


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None or one["suite"]["mean"] is None:
        return "-"
    low, high = one["suite"]["interval"]
    part = "" if one["complete"] else f", {one['total']['episodes']} episodes so far"
    asked = one["total"].get("requests_per_step")
    each = f", {asked:.2g} requests a step" if asked is not None else ""
    return f"{_percent(one['suite']['mean'])} ({_percent(low)}-{_percent(high)}){part}{each}"


def render(results: Results, wall: str = "") -> str:
    """Markdown of mode -> delay -> results; ``wall`` is said below."""
    delays = sorted({delay for of_mode in results.values() for delay in of_mode})
    modes = [mode for mode in MODES if mode in results]
    head = "| delay, steps (ms) | "
    rule = "|---|" + "---|" * len(modes)
    lines = [head + " | ".join(MODES[mode] for mode in modes) + " |", rule]
    for delay in delays:
        cells = [_cell(_of(results, mode, delay)) for mode in modes]
        lines.append(f"| {delay} ({STEP_MS * delay:.0f}) | " + " | ".join(cells) + " |")
    for title, reference in {
        "no delay": lambda delay: _of(results, NAIVE, 0),
        "naive at the same delay": lambda delay: _of(results, NAIVE, delay),
    }.items():
        rows = []
        for delay in delays:
            base, cells = reference(delay), []
            for mode in modes:
                one = _of(results, mode, delay)
                same = base is None or one is None or one is base
                cells.append("-" if same or base is None or one is None else _difference(base, one))
            if any(cell != "-" for cell in cells):
                rows.append(f"| {delay} ({STEP_MS * delay:.0f}) | " + " | ".join(cells) + " |")
        if rows:
            lines += ["", f"Against {title}:", "", head + " | ".join(modes) + " |", rule, *rows]
    some = next(iter(next(iter(results.values())).values()))
    settings, made = some["settings"], some.get("provenance", {})
    lines += [
        "",
        f"Mean success in % over {len(some['tasks'])} tasks x {settings['episodes']} starts from seed "
        f"{settings['seed']} (95 %, bootstrap over tasks and seeds), one training seed; differences in "
        f"points, paired by start. {_executed(results)} steps from request to request but for ensembles. "
        f"Checkpoint {some['policy'].get('weights_digest', '')[:12] or '-'}, commit {_commit(made)}.",
        "",
        "| rollout | wall time, s | latency p50, ms |",
        "|---|---|---|",
    ]
    for mode in modes:
        for delay, one in sorted(results[mode].items()):
            p50 = one["total"]["latency_ms"]["p50"]
            lines.append(f"| {mode} {delay} | {one['wall_s']:.0f} | {'-' if p50 is None else f'{p50:.0f}'} |")
    if wall:
        lines += ["", *(f"- {line}" for line in wall.strip().splitlines())]
    return "\n".join(lines) + "\n"


def _executed(results: Results) -> str:
    plain = [one for mode in _PLAIN for one in results.get(mode, {}).values()]
    steps = {one["settings"]["executed_steps"] for one in plain}
    return ", ".join(str(number) for number in sorted(filter(None, steps))) or "-"


def _commit(made: Mapping[str, Any]) -> str:
    return str(made.get("git_commit") or "-")[:12]


def main() -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="directory with MODE_DELAY/results.json")
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    args = parser.parse_args()
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for mode in MODES:
        for file in sorted(args.results.glob(f"{mode}_*/results.json")):
            found.setdefault(mode, {})[int(file.parent.name.removeprefix(f"{mode}_"))] = read_results(file)
    if not found:
        parser.exit(2, f"{args.results}: no MODE_DELAY/results.json; run run.sh\n")
    wall = args.results / "wall.txt"
    text = render(found, wall.read_text() if wall.exists() else "")
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
