"""Success by kind of perturbation: by_perturbation.py results.json task_classification.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def summary(results: dict[str, Any], kinds: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each kind, and one for all.

    Args:
        results: content of ``results.json``.
        kinds: suite -> its tasks with ``id`` (from 1) and ``category``.
    """
    kind_of = {
        f"{suite}_{task['id'] - 1}": task["category"] for suite, tasks in kinds.items() for task in tasks
    }
    outcomes: dict[str, list[bool]] = {}
    for episode in results["episodes"]:
        if episode["error"] is None:
            for name in (kind_of[episode["task"]], "all"):
                outcomes.setdefault(name, []).append(episode["success"])
    return "\n".join(
        f"{name}: {sum(found) / len(found):.1%} of {len(found)}" for name, found in sorted(outcomes.items())
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {__doc__.splitlines()[0]}")
    print(summary(*(json.loads(Path(path).read_text("utf-8")) for path in sys.argv[1:3])))
