"""The YAML node of ``qwen2_5_vl``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from vla_core.errors import ConfigError
from vla_core.ranges import Count

from vla_vlm.qwen.config import USER_PROMPT, QwenConfig, QwenSizes

SYSTEM = "You are a helpful assistant."
QWEN_PROMPT = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" + USER_PROMPT
"""The chat format of the published Qwen2.5-VL models, written out."""


@dataclass(frozen=True)
class TinyConfig(QwenSizes):
    """Sizes of ``base_vlm: tiny``, trained from scratch. Head dims are size / heads.

    Args:
        window_size: pixels a side of an attention window in blocks without full attention.
        full_attention_every: every how many-th vision block attends to the whole image (1: all).
    """

    window_size: Count = 64
    full_attention_every: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size % (self.patch_size * self.merge_size):
            raise ConfigError(
                f"tiny.window_size {self.window_size} must be a multiple of patch_size * merge_size "
                f"= {self.patch_size * self.merge_size}"
            )


@dataclass(frozen=True)
class Qwen25VLConfig(QwenConfig):
    """What to build and how to write the prompt; the published sizes are ``3b`` and ``7b``.

    Args:
        tiny: sizes for ``base_vlm: tiny``.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("tiny", "3b", "7b")
    SYSTEM: ClassVar[str] = SYSTEM

    prompt: str = QWEN_PROMPT
    tiny: TinyConfig = field(default_factory=TinyConfig)
