"""Qwen3-VL behind the ``VisionLanguageModel`` protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig as Qwen3VLShapes
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLModel
from vla_core.interfaces import VLMRequest

from vla_vlm.common.reach import highest, unused_mergers
from vla_vlm.qwen.family import Family
from vla_vlm.qwen.model import QwenVLM
from vla_vlm.qwen.shapes import text_shapes, vision_shapes
from vla_vlm.qwen3_vl.config import Qwen3TinyConfig, Qwen3VLConfig
from vla_vlm.qwen3_vl.vision import DeepstackVision


def _tiny_shapes(tiny: Qwen3TinyConfig, vocab_size: int) -> dict[str, Any]:
    rope = {"rope_theta": 5000000.0, "mrope_interleaved": True}
    positions = {
        "num_position_embeddings": tiny.position_grid**2,
        "deepstack_visual_indexes": list(tiny.deepstack),
    }
    return {
        "text_config": {
            **text_shapes(tiny, vocab_size, rope),
            "head_dim": tiny.hidden_size // tiny.n_heads,
        },
        "vision_config": {**vision_shapes(tiny), **positions},
    }


def rope_axes(sections: Sequence[int]) -> list[int]:
    """Axes take turns, so that each sees high and low frequencies; what is left at the end is time's."""
    axes = [i % 3 for i in range(sum(sections))]
    return [axis if i < 3 * sections[axis] else 0 for i, axis in enumerate(axes)]


class Qwen3VL(QwenVLM):
    """Qwen3-VL (dense); ``model`` is transformers' ``Qwen3VLModel``. Made by :meth:`build`."""

    Config: ClassVar[type] = Qwen3VLConfig
    config: Qwen3VLConfig
    family: ClassVar[Family] = Family(
        title="Qwen3-VL",
        key="qwen3_vl",
        config_class=Qwen3VLShapes,
        model_class=Qwen3VLModel,
        full_class=Qwen3VLForConditionalGeneration,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        tiny_shapes=_tiny_shapes,
        rope_axes=rope_axes,
        vision=DeepstackVision,
    )

    def unreached(self, request: VLMRequest) -> list[nn.Module]:
        """See the base; with it, what projects features of deepstack for layers that are not run."""
        n_layers = self.dims.n_layers
        top = highest(request, n_layers)
        mergers = self.model.visual.deepstack_merger_list
        return [*super().unreached(request), *unused_mergers(mergers, top, n_layers, self.raw_states)]

    @property
    def raw_states(self) -> bool:
        """``hidden_states: transformers4``."""
        return self.config.hidden_states == "transformers4"
