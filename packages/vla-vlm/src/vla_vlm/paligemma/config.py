"""The YAML node of ``paligemma``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from vla_core.errors import ConfigError
from vla_core.ranges import Count, NonNegative

from vla_vlm.common.config import BackboneConfig

PALIGEMMA_PROMPT = "{prefix}{images}<bos>{instruction}{suffix}\n{queries}"
"""Images, then the text between ``<bos>`` and a line's end, as the published models saw it."""


@dataclass(frozen=True)
class PaliGemmaTinyConfig:
    """Sizes of ``base_vlm: tiny``, trained from scratch.

    Args:
        hidden_size, n_layers, n_heads, n_kv_heads, head_dim, intermediate_size: the language model; as in
            Gemma, the heads' widths need not add up to the hidden size.
        vision_hidden, vision_depth, vision_heads, vision_intermediate: the vision tower.
        patch_size: pixels a patch; the tower is made for the images that come, which must be square and a
            multiple of it.
        init_std: standard deviation of the language model's initial weights; the tower's follow from its
            widths.
    """

    hidden_size: Count = 128
    n_layers: Count = 4
    n_heads: Count = 4
    n_kv_heads: Count = 1
    head_dim: Count = 32
    intermediate_size: Count = 256
    vision_hidden: Count = 96
    vision_depth: Count = 3
    vision_heads: Count = 3
    vision_intermediate: Count = 192
    patch_size: Count = 14
    init_std: NonNegative = 0.02

    def __post_init__(self) -> None:
        if self.head_dim % 2:
            raise ConfigError(f"tiny.head_dim must be even, got {self.head_dim}")
        for size, parts in (("n_heads", "n_kv_heads"), ("vision_hidden", "vision_heads")):
            if getattr(self, size) % getattr(self, parts):
                raise ConfigError(
                    f"tiny.{size} {getattr(self, size)} must be a multiple of {parts} {getattr(self, parts)}"
                )


@dataclass(frozen=True)
class PaliGemmaVLMConfig(BackboneConfig):
    """What to build and how to write the prompt; the published size is ``3b``.

    Args:
        tiny: sizes for ``base_vlm: tiny``.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("tiny", "3b")

    prompt: str = PALIGEMMA_PROMPT
    tiny: PaliGemmaTinyConfig = field(default_factory=PaliGemmaTinyConfig)
