"""The translation table: every key of StarVLA's training configs that this project knows."""

from __future__ import annotations

from vla_train.dialects.starvla import data_rules, framework_rules, head_rules, trainer_rules, vlm_rules
from vla_train.dialects.starvla.rules import Rule

TABLE: tuple[Rule, ...] = (
    *framework_rules.RULES,
    *head_rules.RULES,
    *data_rules.RULES,
    *vlm_rules.RULES,
    *trainer_rules.RULES,
)


def find(key: str) -> Rule | None:
    """The row about ``key``; an exact one wins over one that ends in ``*``."""
    matching = [rule for rule in TABLE if rule.matches(key)]
    return max(matching, key=lambda rule: len(rule.theirs), default=None)
