"""Two results of the same starts side by side: paired differences, and the tasks that flipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from vla_core.errors import UserError

from vla_serve.rates import Outcomes, bootstrap, mean_of_tasks
from vla_serve.rollouts.results import counted

# Where an episode starts from: outcomes can be paired only if these agree.
_STARTS = ("env",)
_HOW = (
    *("env_options", "executed_steps", "rtc", "delay_steps", "hold_steps"),
    *("temporal_ensemble_coeff", "adaptive_ensemble_alpha", "action_ensemble_horizon", "ensemble_newest"),
    *("instruction", "instruction_from", "hide", "encoding"),
)


def sign_test(first_only: int, second_only: int) -> float:
    """Two-sided exact p of McNemar's test: pairs in which only one succeeded, as fair coins."""
    n, k = first_only + second_only, min(first_only, second_only)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def _outcomes(results: Mapping[str, Any]) -> dict[tuple[str, int], bool]:
    return {
        (e["task"], e["seed"]): bool(e["success"]) for e in results["episodes"] if e["success"] is not None
    }


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Second minus first, over the episodes (task and seed) that ended in both.

    Returns:
        ``tasks`` (a node each: rates, ``first_only``, ``second_only``), ``difference`` of the means over
        tasks with its paired bootstrap ``interval`` (tasks and episodes; Wilson's where all pairs are alike),
        ``p`` of the exact sign test, and ``differing`` settings.

    Raises:
        UserError: another simulator, or no episode in common.
    """
    a, b = first["settings"], second["settings"]
    for key in _STARTS:
        if a.get(key) != b.get(key):
            raise UserError(f"compare: {key} is '{a.get(key)}' and '{b.get(key)}': no start is the same")
    one, two = _outcomes(first), _outcomes(second)
    common = sorted(one.keys() & two.keys())
    if not common:
        raise UserError("compare: no episode (task and seed) ended in both results; roll out the same ones")
    tasks = list(dict.fromkeys(node["task"] for node in first["tasks"]))
    rows, nodes = [], []
    width = max(sum(t == task for t, _ in common) for task in tasks)
    for task in tasks:
        pairs = [(one[key], two[key]) for key in common if key[0] == task]
        if not pairs:
            continue
        rows.append([float(y) - float(x) for x, y in pairs] + [math.nan] * (width - len(pairs)))
        nodes.append(
            {
                "task": task,
                "episodes": len(pairs),
                "first": sum(x for x, _ in pairs),
                "second": sum(y for _, y in pairs),
                "first_only": sum(x and not y for x, y in pairs),
                "second_only": sum(y and not x for x, y in pairs),
            }
        )
    differences: Outcomes = np.array(rows)[None]
    lost, won = (sum(node[key] for node in nodes) for key in ("first_only", "second_only"))
    return {
        "tasks": nodes,
        "episodes": len(common),
        "difference": mean_of_tasks(differences),
        "interval": list(bootstrap(differences, paired=True) or ()),
        "first_only": lost,
        "second_only": won,
        "p": sign_test(lost, won),
        "differing": {k: [a.get(k), b.get(k)] for k in _HOW if a.get(k) != b.get(k)},
        "same_weights": first["policy"].get("weights_digest") == second["policy"].get("weights_digest"),
    }


def text(result: Mapping[str, Any], first: str, second: str) -> str:
    """For people: tasks whose outcomes differ, then the difference."""
    lines = [f"A {first}", f"B {second}"]
    for key, (x, y) in result["differing"].items():
        lines.append(f"  {key}: A {x}, B {y}")
    flipped = [node for node in result["tasks"] if node["first"] != node["second"]]
    mixed = [n for n in result["tasks"] if n["first"] == n["second"] and n["first_only"]]
    if flipped:
        wide = max(len(node["task"]) for node in flipped)
        lines += ["", "tasks that differ, largest first"]
        for n in sorted(flipped, key=lambda n: -abs(n["second"] - n["first"])):
            lines.append(
                f"  {n['task']:{wide}}  A {n['first']}/{n['episodes']}  B {n['second']}/{n['episodes']}  "
                f"({n['second_only']} won, {n['first_only']} lost)"
            )
    if mixed:
        lines.append("equal rates, other episodes: " + ", ".join(node["task"] for node in mixed))
    low, high = (100 * bound for bound in result["interval"])
    tasks, pairs = counted(len(result["tasks"]), "task"), counted(result["episodes"], "pair")
    won = counted(result["second_only"], "time")
    lines += [
        "",
        f"B - A: {100 * result['difference']:+.1f} points (95 % {low:+.1f} to {high:+.1f}) over {tasks} and "
        f"{pairs}; only B succeeded {won}, only A {result['first_only']} (sign test p = {result['p']:.3g})",
    ]
    return "\n".join(lines)
