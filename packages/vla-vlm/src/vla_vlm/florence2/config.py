"""The YAML node of ``florence2``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from vla_core.errors import ConfigError
from vla_core.ranges import Count, NonNegative

from vla_vlm.common.config import BackboneConfig
from vla_vlm.common.kernels import FLASH

FLORENCE_PROMPT = "{prefix}{images}<s>{instruction}{suffix}{queries}</s>"
"""Images, then the text between its marks, as the published models saw it."""
HEAD_DIM = 16
"""Width of a vision head and of a group of channels, at size tiny."""


@dataclass(frozen=True)
class Florence2TinyConfig:
    """Sizes of ``base_vlm: tiny``, trained from scratch.

    Args:
        hidden_size, n_layers, n_heads, intermediate_size: the text encoder.
        vision_widths, vision_depths, vision_strides: of each stage of the vision tower; widths are multiples
            of 16. A token covers the product of the strides in pixels a side.
        window_size: side of an attention window, in tokens of a stage.
        max_positions: most tokens of a prompt, images included.
        init_std: standard deviation of the initial weights.
    """

    hidden_size: Count = 128
    n_layers: Count = 4
    n_heads: Count = 4
    intermediate_size: Count = 256
    vision_widths: tuple[Count, ...] = (32, 64, 128)
    vision_depths: tuple[Count, ...] = (1, 1, 1)
    vision_strides: tuple[Count, ...] = (4, 2, 2)
    window_size: Count = 4
    max_positions: Count = 1024
    init_std: NonNegative = 0.02

    def __post_init__(self) -> None:
        stages = {len(self.vision_widths), len(self.vision_depths), len(self.vision_strides)}
        if len(stages) > 1 or 0 in stages:
            raise ConfigError(
                "tiny.vision_widths, vision_depths and vision_strides need a value for each stage"
            )
        if any(width % HEAD_DIM for width in self.vision_widths):
            raise ConfigError(f"tiny.vision_widths {self.vision_widths} must be multiples of {HEAD_DIM}")
        if self.hidden_size % self.n_heads:
            raise ConfigError(
                f"tiny.hidden_size {self.hidden_size} must be a multiple of n_heads {self.n_heads}"
            )


@dataclass(frozen=True)
class Florence2VLMConfig(BackboneConfig):
    """What to build and how to write the prompt; the published sizes are ``base`` and ``large``.

    Args:
        tiny: sizes for ``base_vlm: tiny``.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("tiny", "base", "large")

    prompt: str = FLORENCE_PROMPT
    tiny: Florence2TinyConfig = field(default_factory=Florence2TinyConfig)

    def __post_init__(self) -> None:
        if self.attn_implementation == FLASH:
            raise ConfigError(
                f"attn_implementation: {FLASH} cannot do florence2's attention among channels, whose "
                "heads are as wide as an image has tokens; set sdpa"
            )
        super().__post_init__()
