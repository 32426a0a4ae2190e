"""What vla-train says about a run, line by line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vla_train.config import EvaluationConfig
from vla_train.monitoring.no_effect import no_effect
from vla_train.reach import as_modules

if TYPE_CHECKING:
    from vla_train.trainer import Trainer

MOST_NAMES = 6


def line(console: Console, text: str) -> None:
    """One line as it is: logs are searched by line."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _length(trainer: Trainer, samples: int) -> str:
    """How long the run is."""
    steps = trainer.settings.max_steps
    text = f"{steps:,} step{'s' if steps > 1 else ''}, {steps * samples:,} samples"
    talks = 0 if trainer.conversations is None else len(trainer.conversations)
    epochs = steps * samples / (talks if trainer.robots is None else trainer.robots.mixture.length)
    return f"{text}: {epochs:.1f} epochs" if epochs >= 1 else f"{text}: {epochs:.2g} epochs"


def _episodes(count: int) -> str:
    return f"{count} episode{'s' * (count != 1)}"


def hello(console: Console, info: Mapping[str, Any], table: str, trainer: Trainer) -> None:
    """What is about to be trained, on what; ``table``: of :func:`vla_train.monitoring.overview.overview`."""
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
        f"micro-batch{'es' if settings.gradient_accumulation_steps > 1 else ''} x {count}",
    )
    line(console, _length(trainer, info["samples_a_step"]))
    if trainer.unreached:
        names = as_modules(trainer.model, trainer.unreached)
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        line(
            console,
            f"frozen, because no loss of this config depends on them: {', '.join(names[:MOST_NAMES])}{more} "
            f"({len(trainer.unreached)} tensors)",
        )
    idle = no_effect(trainer.config, trainer.validation is not None)
    for note in (*trainer.composed.notes, *trainer.notes, *idle):
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
            f"data: {_episodes(data['episodes_train'])}, {data['samples_train']} samples; "
            f"held out: {_episodes(data['episodes_val'])}",
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


def dry_run(console: Console, info: Mapping[str, Any], trainer: Trainer) -> None:
    """What would be trained, as the run itself says it, and what one batch looks like; nothing is written."""
    from vla_train.monitoring.overview import overview
    from vla_train.testing.trace import shapes

    hello(console, info, overview(trainer.model, trainer, trainer.engine), trainer)
    if trainer.robots:
        if len(trainer.robots.labels) == 1:
            line(console, trainer.robots.epoch)
        line(console, "one batch")
        for text in shapes(trainer.robots.first_batch()):
            line(console, f"  {text}")
    if (talks := trainer.conversations) is not None:
        line(console, "one batch of conversations")
        for text in shapes(talks.first(talks.batch_size)):
            line(console, f"  {text}")
    if next(trainer.model.parameters()).is_meta and not trainer.engine.shards:
        line(console, "so large a model is not made for a dry run: its shapes were looked at")
    then = "would go on" if trainer.settings.resume else "would be written"
    line(console, f"everything is in order; {trainer.run_dir} {then}")
