"""What tells one Qwen model from another: classes of transformers, shapes, rope and vision loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vla_vlm.qwen.vision import VisionRunner


@dataclass(frozen=True)
class Family:
    """One architecture; with it :class:`~.model.QwenVLM` is complete.

    Args:
        title: its name in messages.
        key: ``model_type`` of transformers, and the entry in ``assets/sizes.json``.
        config_class, model_class, full_class: of transformers; ``full_class`` has the language head.
        mean, std: image statistics where a model brings none.
        tiny_shapes: from the sizes under ``tiny`` and the vocabulary to text and vision config.
        rope_axes: from ``mrope_section`` to the position axis (0 time, 1 height, 2 width) that each
            frequency of the language model reads.
        vision: the loop over the vision blocks.
    """

    title: str
    key: str
    config_class: Any
    model_class: Any
    full_class: Any
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tiny_shapes: Callable[[Any, int], dict[str, Any]]
    rope_axes: Callable[[Sequence[int]], list[int]]
    vision: type[VisionRunner]
