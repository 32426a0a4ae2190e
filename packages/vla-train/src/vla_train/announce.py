"""What vla-train says about a run, line by line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vla_train.config import EvaluationConfig
from vla_train.reach import as_modules

if TYPE_CHECKING:
    from vla_train.trainer import Trainer

MOST_NAMES = 6


def line(console: Console, text: str) -> None:
    """One line as it is: logs are searched by line."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def hello(console: Console, info: Mapping[str, Any], table: str, trainer: Trainer) -> None:
    """What is about to be trained, on what; ``table``: of :func:`vla_train.overview.overview`."""
    parameters, settings = info["parameters"], trainer.settings
    line(
        console,
        f"{info['framework']} on {info['device']}: {parameters['total'] / 1e6:.2f}M parameters, "
        f"{parameters['trainable'] / 1e6:.2f}M train",
    )
    line(console, table.rstrip())
    count = info["processes"]
    line(
        console,
        f"{count} process{'es' if count > 1 else ''} ({info['engine']}), effective batch size "
        f"{info['samples_a_step']} = {settings.batch_size} samples x {settings.gradient_accumulation_steps} "
        f"micro-batches x {count}",
    )
    if trainer.unreached:
        names = as_modules(trainer.model, trainer.unreached)
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        line(
            console,
            f"frozen, because no loss of this config depends on them: {', '.join(names[:MOST_NAMES])}{more} "
            f"({len(trainer.unreached)} tensors)",
        )
    for note in (*trainer.composed.notes, *trainer.notes):
        line(console, note)
    done = trainer.choice.step if settings.resume else 0
    if done:
        left = settings.max_steps - done
        then = (
            f"of {settings.max_steps}"
            if left > 0
            else f"and trainer.max_steps={settings.max_steps}: none is left"
        )
        line(console, f"goes on after step {done} {then}")
    elif info["from_scratch"]:
        line(console, "the backbone trains from scratch: no pretrained weights are used")
    if "data" in info:
        data = info["data"]
        line(
            console,
            f"data: {data['episodes_train']} episodes, {data['samples_train']} samples; "
            f"held out: {data['episodes_val']} episodes",
        )
    if trainer.robots and len(trainer.robots.labels) > 1:
        line(console, f"mixture of {len(trainer.composed.data.specs)} robots: {trainer.robots.epoch}")
    if trainer.conversations is not None:
        line(console, trainer.conversations.describe())
    if info["job"] == "cotrain":
        scale = settings.loss_scale
        line(
            console,
            "co-training: every micro-batch has one batch of robots and one of conversations; loss = "
            f"{scale.vla:g} x the robots' terms + {scale.vlm:g} x vlm_loss",
        )


def evaluation(console: Console, config: EvaluationConfig) -> None:
    """That the closed loop begins."""
    line(
        console,
        f"closed loop: {config.episodes} episodes of {', '.join(config.tasks)} "
        "through vla-serve and vla-rollout",
    )


def results(console: Console, found: Mapping[str, Any]) -> None:
    """Success of each task."""
    for task in found["tasks"]:
        low, high = task["interval"]
        if task["success_rate"] is None:
            line(console, f"  {task['task']:20} no episode ran to its end")
            continue
        line(
            console,
            f"  {task['task']:20} success {100 * task['success_rate']:.0f} % "
            f"({task['successes']}/{task['episodes']}, 95 % interval {100 * low:.0f}-{100 * high:.0f} %)",
        )


def dry_run(console: Console, trainer: Trainer) -> None:
    """What would be trained, and what one batch looks like; nothing is written."""
    from vla_train.overview import overview
    from vla_train.testing.trace import shapes

    line(console, overview(trainer.model, trainer, trainer.engine))
    for note in (*trainer.composed.notes, *trainer.notes):
        line(console, note)
    if trainer.robots:
        line(console, trainer.robots.epoch)
        line(console, "one batch")
        for text in shapes(trainer.robots.first_batch()):
            line(console, f"  {text}")
    if (talks := trainer.conversations) is not None:
        line(console, f"one batch of {talks.describe()}")
        for text in shapes(talks.first(talks.batch_size)):
            line(console, f"  {text}")
    line(console, f"everything is in order; {trainer.run_dir} would be written")
