"""Qwen2.5-VL behind the ``VisionLanguageModel`` protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
)

from vla_vlm.common.pixels import CLIP_MEAN, CLIP_STD
from vla_vlm.qwen.family import Family
from vla_vlm.qwen.model import QwenVLM
from vla_vlm.qwen.shapes import text_shapes, vision_shapes
from vla_vlm.qwen2_5_vl.config import Qwen25VLConfig, TinyConfig
from vla_vlm.qwen2_5_vl.vision import WindowedVision


def _tiny_shapes(tiny: TinyConfig, vocab_size: int) -> dict[str, Any]:
    every = tiny.full_attention_every
    windows = {
        "window_size": tiny.window_size,
        "fullatt_block_indexes": list(range(every - 1, tiny.vision_depth, every)),
    }
    return {
        "text_config": text_shapes(tiny, vocab_size, {"rope_theta": 1000000.0}),
        "vision_config": {**vision_shapes(tiny), **windows},
    }


def rope_axes(sections: Sequence[int]) -> list[int]:
    """Time, height and width each get a run of neighbouring frequencies."""
    return [axis for axis, size in enumerate(sections) for _ in range(size)]


class Qwen25VL(QwenVLM):
    """Qwen2.5-VL; ``model`` is transformers' ``Qwen2_5_VLModel``. Made by :meth:`build`."""

    Config: ClassVar[type] = Qwen25VLConfig
    family: ClassVar[Family] = Family(
        title="Qwen2.5-VL",
        key="qwen2_5_vl",
        config_class=Qwen2_5_VLConfig,
        model_class=Qwen2_5_VLModel,
        full_class=Qwen2_5_VLForConditionalGeneration,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        tiny_shapes=_tiny_shapes,
        rope_axes=rope_axes,
        vision=WindowedVision,
    )
