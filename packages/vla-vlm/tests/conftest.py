from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration
from vla_core.batch import Batch
from vla_core.interfaces import PromptSpec
from vla_core.types import Observation, Sample
from vla_vlm import Qwen3TinyConfig, Qwen3VL, Qwen3VLConfig, Qwen25VL, Qwen25VLConfig, TinyConfig

INSTRUCTIONS = ("turn the faucet handle to the left", "open the drawer", "Reach! 開けて 🤖", "")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# Small enough for tests; init_std gives the layers something to do, so that a parity test can't pass
# on a residual stream alone.
SMALL = {
    "hidden_size": 64,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "intermediate_size": 96,
    "vision_hidden": 32,
    "vision_depth": 4,
    "vision_heads": 2,
    "vision_intermediate": 48,
    "patch_size": 8,
    "init_std": 0.1,
}


@dataclass(frozen=True)
class Kind:
    """A model family under test."""

    name: str
    model: Any
    config: Any
    tiny: Any
    reference: Any

    def build(self, n_views: int, size: tuple[int, int], assets: Path | None = None, **options: Any) -> Any:
        """The model at its test size, unless ``options`` say otherwise."""
        if options.get("base_vlm", "tiny") == "tiny":
            options.setdefault("tiny", self.tiny)
        return self.model.build(self.config(**options), n_views, size, assets)


KINDS = {
    # Windows of 2 x 2 tokens in every other vision block.
    "qwen2_5_vl": Kind(
        "qwen2_5_vl",
        Qwen25VL,
        Qwen25VLConfig,
        TinyConfig(**SMALL, window_size=32, full_attention_every=2),
        Qwen2_5_VLForConditionalGeneration,
    ),
    # Two of three decoder layers get visual features; a position grid that is never the image's.
    "qwen3_vl": Kind(
        "qwen3_vl",
        Qwen3VL,
        Qwen3VLConfig,
        Qwen3TinyConfig(**SMALL, position_grid=5, deepstack=(0, 2)),
        Qwen3VLForConditionalGeneration,
    ),
}


@pytest.fixture(scope="session", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="session")
def qwen25() -> Kind:
    return KINDS["qwen2_5_vl"]


@pytest.fixture(scope="session")
def qwen3() -> Kind:
    return KINDS["qwen3_vl"]


@pytest.fixture(scope="session")
def sample() -> Callable[[str], Sample]:
    def make(instruction: str) -> Sample:
        return Sample(Observation({}, instruction), np.zeros((2, 1), np.float32), np.ones((2, 1), bool))

    return make


@pytest.fixture(scope="session")
def make_batch(sample: Callable[[str], Sample]) -> Callable[..., Batch]:
    """A batch of random images for ``vlm`` and one row per instruction."""

    def make(
        vlm: Any,
        prompt: PromptSpec | None = None,
        instructions: Sequence[str] = INSTRUCTIONS,
    ) -> Batch:
        generator = torch.Generator().manual_seed(1)
        b, size = len(instructions), vlm.image_size
        images = torch.randint(0, 256, (b, vlm.n_views, 3, *size), dtype=torch.uint8, generator=generator)
        return Batch(
            images=images,
            view_mask=torch.ones(b, vlm.n_views, dtype=torch.bool),
            tokens=vlm.collator(prompt or PromptSpec())([sample(text) for text in instructions]),
            embodiment=torch.zeros(b, dtype=torch.long),
        )

    return make


@pytest.fixture(scope="session")
def vlm(kind: Kind) -> Any:
    torch.manual_seed(0)
    return kind.build(2, (48, 48)).eval()
