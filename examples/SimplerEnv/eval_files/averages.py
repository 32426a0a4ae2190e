"""SimplerEnv's averages of the official settings: averages.py results.json ..., one file or several.

Each look of each task counts alike, then each line of a group, as ``tools/calc_metrics_evaluation_videos.py``
of simpler-env/SimplerEnv (commit 4ab7178) counts. A file has one setting; tasks may be spread over files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from vla_core.envs.simpler_protocol import sweep

LEVELS = ("top", "middle", "bottom")
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "pick coke can": {
        lies: (f"google_robot_pick_{lies}_coke_can",) for lies in ("horizontal", "vertical", "standing")
    },
    "move near": {"move near": ("google_robot_move_near",)},
    "drawer": {
        verb: tuple(f"google_robot_{verb}_{level}_drawer" for level in LEVELS) for verb in ("open", "close")
    },
    "apple in drawer": {"apple in drawer": ("google_robot_place_apple_in_closed_top_drawer",)},
    "WidowX": {
        "spoon on towel": ("widowx_spoon_on_towel",),
        "carrot on plate": ("widowx_carrot_on_plate",),
        "stack cube": ("widowx_stack_cube",),
        "eggplant in basket": ("widowx_put_eggplant_in_basket",),
    },
}
"""Group -> line -> its tasks. The official tool has no line for WidowX's mean; papers do."""


def looks(results: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, list[bool]]]:
    """(Setting, task) -> look -> whether each of its episodes succeeded, of those that ran."""
    found: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for node in results:
        setting = node["settings"]["env_options"].get("setting", "visual_matching")
        for episode in node["episodes"]:
            if episode["error"] is None:
                variant, _ = sweep(episode["task"], setting).episode(episode["seed"])
                outcomes = found.setdefault((setting, episode["task"]), {})
                outcomes.setdefault(variant.name, []).append(episode["success"])
    return found


def grasped(results: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """(Setting, task) -> partial success of each episode, where the benchmark counts it: WidowX."""
    found: dict[tuple[str, str], list[float]] = {}
    for node in results:
        setting = node["settings"]["env_options"].get("setting", "visual_matching")
        for episode in node["episodes"]:
            if episode["error"] is None and episode.get("score") is not None:
                found.setdefault((setting, episode["task"]), []).append(episode["score"])
    return found


def summary(results: Iterable[dict[str, Any]]) -> str:
    """A line for each group, with its parts; what lacks episodes says so."""
    results = list(results)
    found, partial, lines = looks(results), grasped(results), []
    for setting in sorted({setting for setting, _ in found}):
        for group, parts in GROUPS.items():
            means, said, ran, asked = [], [], 0, 0
            for part, tasks in parts.items():
                cells = [v for task in tasks for v in found.get((setting, task), {}).values()]
                if not cells:
                    continue
                means.append(fmean(map(fmean, cells)))
                scores = [s for task in tasks for s in partial.get((setting, task), [])]
                said.append(f"{part} {means[-1]:.1%}" + (f", grasped {fmean(scores):.1%}" if scores else ""))
                ran += sum(map(len, cells))
                asked += sum(len(sweep(task, setting)) for task in tasks)
            if means:
                lines.append(f"{setting}  {group}: {fmean(means):.1%}  ({ran} of {asked} episodes)")
                lines += [f"    {line}" for line in said if len(parts) > 1]
    return "\n".join(lines) or "no episode was run to its end"


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(f"usage: {__doc__.splitlines()[0]}")
    print(summary(json.loads(Path(path).read_text("utf-8")) for path in sys.argv[1:]))
