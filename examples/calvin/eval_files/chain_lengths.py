"""What CALVIN reports of its chains: chain_lengths.py results.json [chains.json].

Success by length of the chain and the mean length; with the chains also the success of each task among those
that were begun (``print_and_save`` of ``calvin_agent/evaluation/utils.py``, mees/calvin at commit fa03f01).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LENGTH = 5


def ended(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The episodes that ran to their end."""
    return [episode for episode in results["episodes"] if episode["error"] is None]


def summary(results: dict[str, Any]) -> str:
    """Of the episodes that ran to their end."""
    lengths = [len(episode["achieved"]) for episode in ended(results)]
    if not lengths:
        return "no chain was run to its end"
    rates = [sum(length >= n for length in lengths) / len(lengths) for n in range(1, LENGTH + 1)]
    rows = [f"{n}/{LENGTH}: {rate:.1%}" for n, rate in enumerate(rates, start=1)]
    return f"{'  '.join(rows)}  mean length {sum(lengths) / len(lengths):.2f} over {len(lengths)} chains"


def by_task(results: dict[str, Any], chains: Sequence[dict[str, Any]]) -> str:
    """A line for each task that was begun."""
    begun, done = Counter[str](), Counter[str]()
    for episode in ended(results):
        tasks = chains[episode["seed"] % len(chains)]["tasks"]
        done.update(tasks[: len(episode["achieved"])])
        begun.update(tasks[: len(episode["achieved"]) + 1])
    return "\n".join(f"{task}: {done[task]} of {begun[task]}" for task in sorted(begun))


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(f"usage: {__doc__.splitlines()[0]}")
    read = [json.loads(Path(path).read_text("utf-8")) for path in sys.argv[1:3]]
    print(summary(read[0]))
    if len(read) > 1:
        print(by_task(read[0], read[1]))
