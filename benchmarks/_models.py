"""The policies and batches that ``full_size.py`` measures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from vla_core.assemble import build_policy
from vla_core.batch import Batch
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.testing import make_observation, make_sample, make_spec
from vla_core.types import Sample

HEADS: dict[str, dict[str, Any]] = {
    "QwenPI": {"name": "layerwise_fm", "repeated_diffusion_steps": 2, "steps": 4},
    "QwenOFT": {"name": "mlp_regression"},
    "QwenGR00T": {"name": "groot_flow", "size": "B", "repeated_diffusion_steps": 8},
}


@dataclass(frozen=True)
class Size:
    """What is measured: B are batch sizes."""

    base_vlm: str
    image: int
    text_tokens: int
    train_B: tuple[int, ...]
    infer_B: tuple[int, ...]
    train_repeats: int
    infer_repeats: int


FULL = Size("3b", 224, 84, (8, 16, 32), (1, 8, 32), 6, 50)
TINY = Size("tiny", 32, 84, (2, 4), (1, 4), 1, 3)


def build(
    size: Size,
    device: torch.device,
    framework: str,
    dtype: torch.dtype,
    vlm: str = "qwen2_5_vl",
    vlm_options: dict[str, Any] | None = None,
    **head: Any,
) -> VLAPolicy:
    """The policy on the device, initialised there."""
    config = FrameworkConfig(
        name=framework,
        horizon=8,
        vlm={
            "name": vlm,
            "base_vlm": size.base_vlm,
            "dtype": str(dtype).removeprefix("torch."),
            "max_text_tokens": size.text_tokens,
            **(vlm_options or {}),
        },
        head={**HEADS[framework], **head},
        transforms=[{"name": "normalize"}],
    )
    spec = make_spec(n_cameras=2, height=size.image, width=size.image, horizon=8)
    torch.manual_seed(0)
    with device:
        policy = build_policy(config, {spec.embodiment: spec})
    policy.model.head.to(dtype)
    for parameter in policy.model.head.parameters():
        # Outputs and modulations start at zero, which would make every comparison of answers true.
        if parameter.ndim >= 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return policy.eval()


def instruction(policy: VLAPolicy, tokens: int) -> str:
    """A text that fills the prompt to ``tokens`` text tokens, so that no padding is computed."""
    (spec,) = policy.specs.values()
    text = policy.model.vlm.collator(policy.model.prompt)
    words = "open the faucet"
    while True:
        missing = int((~text([_said(make_sample(spec), words)]).attention_mask).sum())
        if not missing:
            return words
        words += " a" if missing < 4 else " open the"[: 2 * missing]


def _said(sample: Sample, words: str) -> Sample:
    return replace(sample, observation=replace(sample.observation, instruction=words))


def batch_of(policy: VLAPolicy, rows: int, words: str, device: torch.device, targets: bool) -> Batch:
    """A collated batch on the device."""
    (spec,) = policy.specs.values()
    if not targets:
        seen = [replace(make_observation(spec, i), instruction=words) for i in range(rows)]
        return policy.collate(seen).to(device)
    samples = [_said(make_sample(spec, i), words) for i in range(rows)]
    assert policy.collator is not None
    (pipeline,) = policy.pipelines.values()
    return policy.collator([pipeline(sample) for sample in samples]).to(device)


def noise_of(batch: Batch, seed: int = 0) -> torch.Tensor:
    """Noise ``[B, 8, 7]``; the first rows don't depend on how many there are."""
    rows = [torch.randn(8, 7, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(batch))]
    return torch.stack(rows).to(batch.images.device)
