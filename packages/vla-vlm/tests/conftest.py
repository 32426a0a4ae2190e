from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from vla_core.batch import Batch
from vla_core.interfaces import PromptSpec
from vla_core.types import Observation, Sample
from vla_vlm import Qwen25VL, Qwen25VLConfig, TinyConfig

INSTRUCTIONS = ("turn the faucet handle to the left", "open the drawer", "Reach! 開けて 🤖", "")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small() -> TinyConfig:
    """Small enough for tests; windows of 2 x 2 tokens in every other vision block; init_std gives
    the layers something to do, so that a parity test can't pass on a residual stream alone."""
    return TinyConfig(
        hidden_size=64,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        intermediate_size=96,
        vision_hidden=32,
        vision_depth=4,
        vision_heads=2,
        vision_intermediate=48,
        patch_size=8,
        window_size=32,
        full_attention_every=2,
        init_std=0.1,
    )


@pytest.fixture(scope="session")
def sample() -> Callable[[str], Sample]:
    def make(instruction: str) -> Sample:
        return Sample(Observation({}, instruction), np.zeros((2, 1), np.float32), np.ones((2, 1), bool))

    return make


@pytest.fixture(scope="session")
def make_batch(sample: Callable[[str], Sample]) -> Callable[..., Batch]:
    """A batch of random images for ``vlm`` and one row per instruction."""

    def make(
        vlm: Qwen25VL,
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
def vlm(small: TinyConfig) -> Qwen25VL:
    torch.manual_seed(0)
    return Qwen25VL.build(Qwen25VLConfig(tiny=small), n_views=2, image_size=(48, 48)).eval()
