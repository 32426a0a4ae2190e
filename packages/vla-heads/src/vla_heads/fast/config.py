"""The YAML node of ``fast``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vla_core.ranges import Count, NonNegative, Positive, Range, check_ranges


@dataclass(frozen=True)
class FASTConfig:
    """How actions become words, and how they are spoken.

    Args:
        tokenizer: directory of a tokenizer in the published format (``tokenizer.json`` and
            ``processor_config.json``: a copy of ``physical-intelligence/fast``, or what ``vla-train
            fit-fast`` wrote); null: one is fitted to the training rows.
        vocab_size: ids of a tokenizer that is fitted; a given one brings its own.
        scale: of a tokenizer that is fitted: an action in [-1, 1] is rounded to steps of about 1 / scale.
        max_tokens: the longest answer; null: half as long again as the longest of the training rows.
        temperature: 0 takes the likeliest word; above, words are drawn with the request's seed.
        compat: ``starvla`` trains as StarVLA does: cross-entropy over the whole vocabulary, also of the
            tokens that end the turn and begin the next. For Qwen backbones. Answers are not affected.
    """

    tokenizer: str | None = None
    vocab_size: Annotated[int, Range(low=256)] = 2048
    scale: Positive = 10.0
    max_tokens: Count | None = None
    temperature: NonNegative = 0.0
    compat: Literal["none", "starvla"] = "none"

    def __post_init__(self) -> None:
        check_ranges(self)
