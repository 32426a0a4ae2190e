"""A policy's config in ``trainer.job: vlm``: what it says of parts that a backbone alone has not."""

from __future__ import annotations

import re
from dataclasses import replace

from vla_core.conversing import CONVERSATION_LOSS

from vla_train.config import TrainerConfig

OTHERS = re.compile(r"(geometry|fusion|head|auxiliary)\b")
"""How names of a policy's other parts begin, and expressions for them."""


def of_backbone(trainer: TrainerConfig) -> tuple[TrainerConfig, list[str]]:
    """The settings of the backbone, and a line for each that was of another part."""
    rates, stages = trainer.learning_rates(), trainer.stages()
    others = [f"learning_rate.{name}" for name in rates if OTHERS.match(name)]
    others += [f"freeze_modules: {name}" for name in trainer.freeze_modules if OTHERS.match(name)]
    others += [f"unfreeze.{step}: {name}" for step in stages for name in stages[step] if OTHERS.match(name)]
    others += [f"loss_weights.{name}" for name in trainer.loss_weights if name != CONVERSATION_LOSS]
    kept = {step: [name for name in names if not OTHERS.match(name)] for step, names in stages.items()}
    changed = replace(
        trainer,
        learning_rate={name: rate for name, rate in rates.items() if not OTHERS.match(name)},
        freeze_modules=tuple(name for name in trainer.freeze_modules if not OTHERS.match(name)),
        unfreeze={step: names for step, names in kept.items() if names},
        loss_weights={k: v for k, v in trainer.loss_weights.items() if k == CONVERSATION_LOSS},
    )
    if not others:
        return trainer, []
    return changed, [
        f"trainer.{key} has no effect: the backbone alone trains (trainer.job: vlm)" for key in others
    ]
