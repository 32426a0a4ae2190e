"""The YAML node of ``fast``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_core.errors import ConfigError


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
    vocab_size: int = 2048
    scale: float = 10.0
    max_tokens: int | None = None
    temperature: float = 0.0
    compat: Literal["none", "starvla"] = "none"

    def __post_init__(self) -> None:
        if self.vocab_size < 256:
            raise ConfigError(f"vocab_size: {self.vocab_size} must be at least 256, one id a byte")
        if self.scale <= 0:
            raise ConfigError(f"scale: {self.scale} must be above 0")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens: {self.max_tokens} must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"temperature: {self.temperature} must be at least 0")
