"""Statistics of a rollout, results.json and the printed table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_serve.rates import Outcomes, bootstrap, mean_of_tasks, wilson
from vla_serve.rollouts import servers
from vla_serve.rollouts.worker import Done

SCHEMA = 2
DRAWS = 2000  # of the bootstrap: it is done anew after every episode
_BOOTSTRAP = "bootstrap over tasks and seeds"


def _aggregate(done: Sequence[Done]) -> dict[str, Any]:
    """Over the episodes that ran to their end; the others are counted as ``failed``."""
    ended = [d.episode for d in done if d.episode.success is not None]
    successes = sum(e.success is True for e in ended)
    latencies = [ms for d in done for ms in d.latencies_ms]
    tasks = sorted({task for e in ended for task in e.achieved})
    scores = [e.score for e in ended if e.score is not None]
    return {
        "episodes": len(ended),
        "failed": len(done) - len(ended),
        "successes": successes,
        "success_rate": successes / len(ended) if ended else None,
        "interval": list(wilson(successes, len(ended))),
        "achieved": {task: sum(task in e.achieved for e in ended) for task in tasks},
        "requests_per_step": _requests_per_step(done),
        "held_steps_mean": float(np.mean([e.held_steps for e in ended])) if ended else None,
        "score_mean": float(np.mean(scores)) if scores else None,
        "steps_mean": float(np.mean([e.steps for e in ended])) if ended else None,
        "latency_ms": {
            "requests": len(latencies),
            "mean": float(np.mean(latencies)) if latencies else None,
            "p50": float(np.percentile(latencies, 50)) if latencies else None,
            "p99": float(np.percentile(latencies, 99)) if latencies else None,
        },
    }


def _requests_per_step(done: Sequence[Done]) -> float | None:
    """How often the policy was asked: 1 of an ensemble without delay, about 1 / executed steps otherwise."""
    steps = sum(d.episode.steps or 0 for d in done)
    return round(sum(len(d.latencies_ms) for d in done) / steps, 4) if steps else None


def _suite(done: Sequence[Done], seeds: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Mean over the tasks of ``seeds``, of equal weight, and its interval (nulls without outcomes).

    ``score``: the same mean of the benchmark's partial credit, null where it gives none.
    """
    tasks = list(seeds)
    outcomes: Outcomes = np.full((1, len(tasks), max(map(len, seeds.values()))), np.nan)
    scores = outcomes.copy()
    for d in done:
        task = d.episode.task
        if d.episode.success is not None and task in seeds:
            place = 0, tasks.index(task), seeds[task].index(d.episode.seed)
            outcomes[place] = d.episode.success
            scores[place] = np.nan if d.episode.score is None else d.episode.score
    interval = bootstrap(outcomes, DRAWS)
    return {
        "tasks": len(tasks),
        "mean": mean_of_tasks(outcomes),
        "interval": None if interval is None else list(interval),
        "score": mean_of_tasks(scores),
    }


def _suites(seeds: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Sequence[int]]]:
    """Suite -> its tasks, of tasks named ``SUITE_NUMBER`` as in LIBERO; empty where there are not several."""
    suites: dict[str, dict[str, Sequence[int]]] = {}
    for task, of_task in seeds.items():
        name, _, number = task.rpartition("_")
        if not (name and number.isdecimal()):
            return {}
        suites.setdefault(name, {})[task] = of_task
    return suites if len(suites) > 1 else {}


def summarise(
    done: Sequence[Done],
    seeds: Mapping[str, Sequence[int]],
    settings: Mapping[str, Any],
    policy: Mapping[str, Any],
    wall_s: float,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of results.json; ``seeds`` are those of each task, in whose order episodes come."""
    tasks = list(seeds)
    order = {task: i for i, task in enumerate(tasks)}
    done = sorted(done, key=lambda d: (order[d.episode.task], d.episode.seed))
    expected = sum(map(len, seeds.values()))
    answered_by, episodes = servers.written(done, policy)
    return {
        "schema": SCHEMA,
        "complete": len(done) == expected and all(d.episode.error is None for d in done),
        "settings": dict(settings),
        "policy": answered_by,
        "tasks": [{"task": t, **_aggregate([d for d in done if d.episode.task == t])} for t in tasks],
        "total": _aggregate(done),
        "suite": _suite(done, seeds),
        "suites": {name: _suite(done, part) for name, part in _suites(seeds).items()},
        "episodes": episodes,
        "provenance": dict(provenance or {}),
        "wall_s": round(wall_s, 3),
    }


def save(results: Mapping[str, Any], path: Path) -> None:
    """Write JSON; a reader sees the old file or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def table(results: Mapping[str, Any]) -> str:
    """Success per task with its interval, and latencies, for people."""
    nodes = list(results["tasks"])
    if len(nodes) > 1:
        nodes.append({"task": "all", **results["total"]})
    scored = any(node["score_mean"] is not None for node in nodes)
    head = ("task", "success", "rate", "95 % interval", *(("score",) if scored else ()))
    head += ("steps", "p50 ms", "p99 ms", "achieved")
    rows = [head]
    for node in nodes:
        low, high = node["interval"]
        rate, latency = node["success_rate"], node["latency_ms"]
        rows.append(
            (
                node["task"],
                _success(node),
                "-" if rate is None else f"{100 * rate:.0f} %",
                f"{100 * low:.0f} - {100 * high:.0f} %",
                *((_number(node["score_mean"], 3),) if scored else ()),
                _number(node["steps_mean"], 0),
                _number(latency["p50"], 1),
                _number(latency["p99"], 1),
                ", ".join(f"{task} {count}" for task, count in node["achieved"].items()) or "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def suite(results: Mapping[str, Any]) -> str:
    """The mean over tasks, of each suite and of all, a line each; empty for one task or without outcomes."""
    if len(results["tasks"]) < 2:
        return ""
    lines = []
    for name, node in [*results.get("suites", {}).items(), ("", results["suite"])]:
        if node["mean"] is not None:
            low, high = (100 * bound for bound in node["interval"])
            how = "Wilson, as all outcomes are alike" if node["mean"] in (0, 1) else _BOOTSTRAP
            tasks = node.get("tasks", len(results["tasks"]))
            score = "" if node.get("score") is None else f", score {node['score']:.3f}"
            lines.append(
                f"{name}{': ' if name else ''}mean over {counted(tasks, 'task')} {100 * node['mean']:.1f} % "
                f"(95 % {low:.0f} - {high:.0f} %, {how}){score}\n"
            )
    return "".join(lines)


def counted(n: int, thing: str) -> str:
    """``1 task``, ``3 tasks``."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


def conditions(results: Mapping[str, Any]) -> str:
    """How chunks were executed, in one line."""
    settings = results["settings"]
    if settings.get("replay"):
        return f"the recorded actions of {settings['replay']}, from the recorded starts"
    if not settings["address"]:
        return "the simulator's scripted expert, asked at every step"
    delay = settings["delay_steps"]
    if delay is None:
        held = settings.get("hold_steps")
        takes_over = "the simulator waited for each answer"
        if held:
            shown = "as long as it took (measured)" if held == "measured" else held
            takes_over = f"the robot held still for {shown} at each answer"
    else:
        rest = "continuing the chunk before (real-time chunking)" if settings["rtc"] else "planned afresh"
        after = "as many as it took (measured)" if delay == "measured" else delay
        takes_over = f"an answer takes over after {after}, {rest}"
    mixed = _averaged(settings)
    executed = settings["executed_steps"]
    pace = "asked at every step" if executed == 1 else f"{executed} steps from request to request"
    hidden = "; the policy got black images" if settings.get("hide") == "images" else ""
    return f"{pace}; {takes_over}{mixed}{hidden}"


def _averaged(settings: Mapping[str, Any]) -> str:
    """What an ensemble does, for results of any age; empty without one."""
    coeff, alpha = (settings.get(k) for k in ("temporal_ensemble_coeff", "adaptive_ensemble_alpha"))
    if coeff is None and alpha is None:
        return ""
    how = (
        f"temporal ensembling, m = {coeff:g}" if alpha is None else f"adaptive ensembling, alpha = {alpha:g}"
    )
    most, newest = settings.get("action_ensemble_horizon"), settings.get("ensemble_newest")
    how += f", of at most {most} chunks" if most else ""
    how += f", but for {', '.join(newest)}" if newest else ""
    return f"; actions are means of what the chunks say ({how})"


def _success(node: Mapping[str, Any]) -> str:
    failed = f" (+{node['failed']} failed)" if node["failed"] else ""
    return f"{node['successes']}/{node['episodes']}{failed}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def text(results: Mapping[str, Any]) -> str:
    """All of it, as console and report say it."""
    return f"{table(results)}\n{suite(results)}{conditions(results)}"
