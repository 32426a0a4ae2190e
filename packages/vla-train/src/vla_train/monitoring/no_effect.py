"""Keys of the trainer section that are set where nothing reads them: a line each, before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields

from vla_train.checkpointing.saving import ROLLOUT
from vla_train.config import RunConfig, TrainerConfig
from vla_train.dataloading.conversation_config import LossScale


def no_effect(config: RunConfig, validates: bool) -> Iterator[str]:
    """Lines for what is not as it is by default and has no effect on this run.

    ``validates``: whether episodes are held out.
    """
    for key, why in (*_idle(config, validates), *_weightless(config)):
        yield f"trainer.{key} has no effect: {why}"
    scale = config.trainer.loss_scale
    for weight, job, what in ((scale.vlm, "vla", "conversations"), (scale.vla, "vlm", "robots")):
        if config.job == "cotrain" and not weight:
            yield (
                f"the {what} weigh 0 in the loss (trainer.loss_scale): they take time and teach nothing; "
                f"trainer.job={job} leaves them out"
            )


def _weightless(config: RunConfig) -> Iterator[tuple[str, str]]:
    scale, usual = config.trainer.loss_scale, LossScale()
    if config.job == "vlm" and scale.vla != usual.vla:
        yield "loss_scale.vla", "there are no robots (trainer.job: vlm)"
    if config.job == "vlm" and scale.vlm != usual.vlm:
        yield "loss_scale.vlm", "the only loss weighs 1 (trainer.job: vlm)"
    if config.job == "vla" and scale.vlm != usual.vlm:
        yield "loss_scale.vlm", "there are no conversations (trainer.job: vla)"


def _idle(config: RunConfig, validates: bool) -> Iterator[tuple[str, str]]:
    settings, evaluation = config.trainer, config.trainer.evaluation
    defaults = {f.name: f.default for f in fields(TrainerConfig) if f.default is not MISSING}
    given = {key for key, value in defaults.items() if getattr(settings, key) != value}
    last = f"the last step is {settings.max_steps}"
    if "decay_ratio" in given and settings.schedule != "wsd":
        yield "decay_ratio", f"it is of trainer.schedule: wsd, and this one is {settings.schedule}"
    if "min_lr_ratio" in given and settings.schedule == "constant":
        yield "min_lr_ratio", "trainer.schedule is constant"
    if "warmup_steps" in given and settings.warmup_ratio is not None:
        yield "warmup_steps", "trainer.warmup_ratio goes before"
    if "keep_states" in given and not settings.save_resume:
        yield "keep_states", "trainer.save_resume is false, so none is written"
    held_out = "conversations are not held out" if config.job == "vlm" else "no episode is held out"
    for key in sorted(given & {"val_every", "val_samples"}):
        if not validates:
            yield key, held_out
    for key in ("val_every", "save_every"):
        # A default that only the last step comes before is no mistake.
        if (
            key in given
            and (validates or key == "save_every")
            and getattr(settings, key) > settings.max_steps
        ):
            yield key, f"{last}, which has it anyway"
    if evaluation.every and not evaluation.tasks:
        yield "evaluation.every", "trainer.evaluation.tasks names none"
    elif evaluation.every >= settings.max_steps:
        yield "evaluation.every", f"{last}, after which it is evaluated anyway"
        if (settings.keep_best or "").startswith(ROLLOUT):
            yield "keep_best", f"nothing is rolled out before the last step ({settings.max_steps})"
