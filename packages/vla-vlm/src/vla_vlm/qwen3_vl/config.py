"""The YAML node of ``qwen3_vl``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vla_core.errors import ConfigError
from vla_core.ranges import Count, Natural

from vla_vlm.qwen.config import QwenConfig, QwenSizes


@dataclass(frozen=True)
class Qwen3TinyConfig(QwenSizes):
    """Sizes of ``base_vlm: tiny``, trained from scratch. Head dims are size / heads.

    Args:
        position_grid: side of the square grid of learned positions, interpolated to the image.
        deepstack: vision blocks (from 0, ascending) whose features are added after the first,
            second, ... decoder layer; empty for none.
    """

    position_grid: Count = 16
    deepstack: tuple[Natural, ...] = (0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = tuple(self.deepstack)
        if chosen != tuple(sorted({*chosen} & {*range(self.vision_depth)})):
            raise ConfigError(
                f"tiny.deepstack must name vision blocks 0 to {self.vision_depth - 1} in ascending order, "
                f"got {list(chosen)}"
            )
        if len(chosen) > self.n_layers:
            raise ConfigError(
                f"tiny.deepstack has {len(chosen)} entries, more than the {self.n_layers} decoder layers"
            )


@dataclass(frozen=True)
class Qwen3VLConfig(QwenConfig):
    """What to build and how to write the prompt; the published sizes are ``2b`` and ``4b``.

    Args:
        tiny: sizes for ``base_vlm: tiny``.
        hidden_states: which states heads and fusions read. ``transformers5``: a layer's own output, the last
            one after the final norm. ``transformers4``: as transformers 4.57 records them, after deepstack's
            features were added, the last one before the final norm; heads trained there need it.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("tiny", "2b", "4b")

    hidden_states: Literal["transformers4", "transformers5"] = "transformers5"

    tiny: Qwen3TinyConfig = field(default_factory=Qwen3TinyConfig)
