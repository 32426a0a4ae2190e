"""What a backbone says a request never reaches is what has no gradient, on every backbone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from vla_core.interfaces import PromptSpec, VLMRequest
from vla_vlm import (
    Florence2,
    Florence2TinyConfig,
    Florence2VLMConfig,
    Llava3D,
    Llava3DConfig,
    Llava3DTinyConfig,
    PaliGemma,
    PaliGemmaTinyConfig,
    PaliGemmaVLMConfig,
    Qwen3TinyConfig,
    Qwen3VL,
    Qwen3VLConfig,
    Qwen25VL,
    Qwen25VLConfig,
    TinyConfig,
)

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "n_layers": 3,
    "n_heads": 4,
    "intermediate_size": 96,
    "vision_hidden": 32,
    "vision_depth": 2,
    "vision_heads": 2,
    "vision_intermediate": 48,
    "init_std": 0.1,
}
QWEN3 = Qwen3TinyConfig(**{**SIZES, "vision_depth": 3}, n_kv_heads=2, patch_size=8, deepstack=(0, 2))
FLORENCE = Florence2TinyConfig(
    hidden_size=64, n_layers=3, vision_widths=(16, 32), vision_depths=(1, 1), vision_strides=(4, 2)
)
MADE = {
    "qwen2_5_vl": (Qwen25VL, Qwen25VLConfig(tiny=TinyConfig(**SIZES, n_kv_heads=2, patch_size=8))),
    "qwen3_vl": (Qwen3VL, Qwen3VLConfig(tiny=QWEN3)),
    "qwen3_vl raw": (Qwen3VL, Qwen3VLConfig(tiny=QWEN3, hidden_states="transformers4")),
    "llava3d": (Llava3D, Llava3DConfig(tiny=Llava3DTinyConfig(**SIZES))),
    "clip": (Llava3D, Llava3DConfig(tiny=Llava3DTinyConfig(**SIZES), vision_tower="clip")),
    "florence2": (Florence2, Florence2VLMConfig(tiny=FLORENCE)),
    "paligemma": (
        PaliGemma,
        PaliGemmaVLMConfig(tiny=PaliGemmaTinyConfig(**{**SIZES, "patch_size": 14, "head_dim": 16})),
    ),
}
SIDE = {"llava3d": 42, "clip": 42, "paligemma": 42}
LAYERS = [VLMRequest((0,)), VLMRequest((1,)), VLMRequest((2,)), VLMRequest((1, 3)), VLMRequest((3,))]
KV = [VLMRequest(kv=(1, 2, 3)), VLMRequest(kv=(1,)), VLMRequest((1,), kv=(3,)), VLMRequest((3,), kv=(3,))]
CASES = [
    *((name, request) for name in MADE for request in LAYERS),
    *(("paligemma", request) for request in KV),
]


def build(name: str) -> Any:
    cls, config = MADE[name]
    side = SIDE.get(name, 32)
    return cls.build(config, 2, (side, side))


def without_gradient(vlm: Any, batch: Any, request: VLMRequest) -> set[str]:
    visual = vlm.embed_images(batch.images, batch.view_mask)
    out = vlm(vlm.embed_text(batch), visual, None, request)
    read = [*out.hidden.values(), *(x for pair in out.kv.values() for x in pair)]
    read += [] if out.logits is None else [out.logits]
    torch.stack([x.square().sum() for x in read]).sum().backward()
    return {name for name, p in vlm.named_parameters() if p.grad is None}


def told(vlm: Any, request: VLMRequest) -> set[str]:
    names = vlm.unused(request)
    return {
        name for name, _ in vlm.named_parameters() if any(name.startswith(f"{unused}.") for unused in names)
    }


@pytest.mark.parametrize(("name", "request_"), CASES, ids=lambda x: x if isinstance(x, str) else None)
def test_unused_is_what_has_no_gradient(make_batch: Any, name: str, request_: VLMRequest) -> None:
    vlm = build(name)
    assert told(vlm, request_) == without_gradient(vlm, make_batch(vlm), request_)


class Words:
    """Three answers, each one token."""

    tokens = tuple(f"<robot_action_{i}>" for i in range(3))
    max_length = 1

    def __call__(self, actions: Any, mask: Any) -> list[int]:
        return [1]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen3_vl raw", "llava3d"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("request_", [VLMRequest(logits="labels"), VLMRequest((1,)), VLMRequest((3,))])
def test_a_backbone_that_speaks(
    make_batch: Any, sample: Any, name: str, tied: bool, request_: VLMRequest
) -> None:
    vlm = build(name)
    if name != "llava3d":
        vlm.model.config.tie_word_embeddings = tied
    elif not tied:
        pytest.skip("its head is always the embedding here")
    vlm.add_answers(Words())
    prompt = PromptSpec(answer_ids=Words())
    batch = make_batch(vlm, prompt)
    rows = [sample(text) for text in ("open", "close", "lift", "push")]
    ones = {"actions": np.ones((1, 1), np.float32), "action_mask": np.ones((1, 1), bool)}
    batch.tokens = vlm.collator(prompt)([replace(row, **ones) for row in rows], answers=True)
    assert told(vlm, request_) == without_gradient(vlm, batch, request_)
