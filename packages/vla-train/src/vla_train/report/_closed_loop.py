"""The headline: how often the robot did what it was told, and how surely."""

from __future__ import annotations

import json
from collections.abc import Iterable

from vla_train.report._made_with import of_rollout, other_weights
from vla_train.report._media import links, video_gallery
from vla_train.report._page import Markup, code, details, facts, note, section, table, tag
from vla_train.report._rollout import ReportedEpisode, Rollout, TaskResult
from vla_train.report._run import Run
from vla_train.report._text import NONE, count, number, percent, rate


def closed_loop(run: Run) -> Markup:
    """Success per task with intervals, and the episodes."""
    title = "Closed-loop success"
    if not run.rollouts:
        return section(
            "closed-loop",
            title,
            note(
                "Not evaluated in closed loop: there is no ",
                code("rollout/results.json"),
                ". List tasks under ",
                code("trainer.evaluation.tasks"),
                ", or let ",
                code("vla-rollout --out DIR"),
                " write anywhere and write the report again: ",
                code("vla-train report RUN --rollout DIR"),
                ".",
            ),
        )
    parts: list[Markup] = []
    for rollout in run.rollouts:
        if len(run.rollouts) > 1:
            parts.append(tag("h3", rollout.name))
        parts += _one(rollout, run)
    return section("closed-loop", title, *parts)


def _one(rollout: Rollout, run: Run) -> list[Markup]:
    tasks = list(rollout.tasks)
    rows = [*tasks, rollout.total] if len(tasks) > 1 else tasks
    failed = rollout.total.failed
    text = "Bar: success rate. Whisker: 95 % Wilson interval."
    if failed:
        text += f" Not counted, as they broke off with an error (see below): {count(failed)}."
    explanation = note(text)
    who = other_weights(rollout, run)
    warned = [tag("p", f"Not this run's policy: {who} acted.", class_="no")] if who else []
    body = tag("div", *warned, _task_table(rows), explanation, class_="card")
    return [body, *_phrasings(rollout), *_videos(rollout), *_episodes(rollout), *_about(rollout, run)]


def _videos(rollout: Rollout) -> list[Markup]:
    gallery = video_gallery(rollout)
    if gallery is None:
        return []
    return [tag("div", tag("h3", "Episodes on video, failures first"), gallery, class_="card")]


def _about(rollout: Rollout, run: Run) -> list[Markup]:
    """How it was run, and with what."""
    parts = []
    if rollout.settings:
        shown = [(str(name), json.dumps(value).strip('"')) for name, value in rollout.settings.items()]
        parts.append(details("Rollout settings", facts(shown)))
    if rollout.policy or rollout.provenance:
        parts.append(details("What answered, and on which machine", of_rollout(rollout, run)))
    return parts


def _phrasings(rollout: Rollout) -> list[Markup]:
    """Success per sentence, where a task was told in more than one."""
    said = rollout.by_instruction()
    if len(said) <= len(rollout.tasks):
        return []
    return [details(f"Success per phrasing ({len(said)})", _task_table(said, "instruction"))]


def interval_text(task: TaskResult) -> str:
    """``64–95 %``."""
    low, high = task.interval
    return f"{100 * low:.0f}{NONE}{percent(high)}"


def _bar(task: TaskResult) -> Markup:
    low, high = (100 * bound for bound in task.interval)
    width = 100 * task.rate if task.episodes else 0.0
    return tag(
        "div",
        tag("div", class_="rate", style=f"width:{width:.2f}%"),
        tag("div", class_="interval", style=f"left:{low:.2f}%;width:{high - low:.2f}%"),
        class_="bar",
        role="img",
        aria_label=f"{rate(task.rate)}, 95 % interval {interval_text(task)}",
    )


def _task_table(tasks: Iterable[TaskResult], first: str = "task") -> Markup:
    tasks = list(tasks)
    timed = any(task.latency_p50 is not None or task.latency_p99 is not None for task in tasks)
    head = [first, "", "success", "95 % interval", "episodes"]
    rows = [
        [
            tag("b", task.task),
            _bar(task),
            tag("b", rate(task.rate)),
            interval_text(task),
            f"{count(task.successes)} of {count(task.episodes)}",
        ]
        for task in tasks
    ]
    align = "llrrr"
    if timed:
        head += ["latency p50", "p99"]
        align += "rr"
        for row, task in zip(rows, tasks, strict=True):
            row += [_ms(task.latency_p50), _ms(task.latency_p99)]
    return table(head, rows, align)


def _ms(value: float | None) -> str:
    return NONE if value is None else f"{number(value)} ms"


def _outcome(episode: ReportedEpisode) -> Markup:
    if episode.success is None:
        return tag("span", "error: " + (episode.error or "did not run to its end"), class_="no")
    if episode.success:
        return tag("span", "success", class_="yes")
    others = [task for task in episode.achieved if task != episode.task]
    return tag("span", "failure" + (f", achieved {', '.join(others)}" if others else ""), class_="no")


def _episodes(rollout: Rollout) -> list[Markup]:
    parts = []
    if rollout.episodes:
        rows = [
            [
                episode.task,
                NONE if episode.seed is None else str(episode.seed),
                episode.instruction,
                _outcome(episode),
                count(episode.steps),
                links(rollout, [episode.video]) if episode.video else "",
            ]
            for episode in sorted(rollout.episodes, key=lambda e: e.success is True)
        ]
        failed = sum(episode.success is not True for episode in rollout.episodes)
        head = ["task", "seed", "instruction", "outcome", "steps", ""]
        parts.append(
            details(
                f"{len(rows)} episode{'s' * (len(rows) > 1)}, {failed} without success",
                table(head, rows, "lrllrl"),
            )
        )
    if rollout.videos:
        further = tag("p", links(rollout, rollout.videos))
        parts.append(details(f"{len(rollout.videos)} videos", further))
    return parts
