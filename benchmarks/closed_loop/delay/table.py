"""Success against delay, a column for each way of waiting.

    uv run python benchmarks/closed_loop/delay/table.py --results runs/mt50/delay --out table.md

Reads ``MODE_DELAY/results.json`` below ``--results``.
Differences are paired with the same mode without delay.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vla_serve._rollout_compare import compare
from vla_serve._rollout_resume import read_results

MODES = {
    "waits": "the robot waits, holding still",
    "goes_on": "goes on, each chunk planned afresh",
    "continues": "goes on, answers continue the chunk (RTC)",
}
STEP_MS = 12.5  # Meta-World's control step


def _cell(results: dict[str, Any] | None, free: dict[str, Any] | None) -> str:
    if results is None:
        return "-"
    suite = results["suite"]
    if suite["mean"] is None:
        return "-"
    low, high = suite["interval"]
    text = f"{100 * suite['mean']:.0f} ({100 * low:.0f}-{100 * high:.0f})"
    if free is not None and free is not results:
        paired = compare(free, results)
        low, high = paired["interval"]
        text += f", {100 * paired['difference']:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"
    return text


def render(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Markdown of mode -> delay -> results."""
    delays = sorted({delay for of_mode in results.values() for delay in of_mode})
    lines = ["| delay, steps (ms) | " + " | ".join(MODES[mode] for mode in results) + " |"]
    lines.append("|---|" + "---|" * len(results))
    for delay in delays:
        cells = [_cell(of_mode.get(delay), of_mode.get(0)) for of_mode in results.values()]
        lines.append(f"| {delay} ({STEP_MS * delay:.0f}) | " + " | ".join(cells) + " |")
    some = next(iter(next(iter(results.values())).values()))
    lines += [
        "",
        f"Mean success in % over {len(some['tasks'])} tasks x {some['settings']['episodes']} starts from "
        f"seed {some['settings']['seed']} (95 %, bootstrap over tasks and seeds), then the paired difference "
        "from no delay.",
    ]
    return "\n".join(lines) + "\n"


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
            delay = int(file.parent.name.removeprefix(f"{mode}_"))
            found.setdefault(mode, {})[delay] = read_results(file)
    if not found:
        parser.exit(2, f"{args.results}: no MODE_DELAY/results.json; run run.sh\n")
    text = render(found)
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
