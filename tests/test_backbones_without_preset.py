"""Florence-2 and PaliGemma under the heads and fusions of the other packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from vla_core.assemble import build_policy
from vla_core.config import build_config
from vla_core.errors import ConfigError
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.testing import make_observation, make_sample, make_spec
from vla_train._smoke_sizes import CAMERA, framework_tree

FUSED = [
    "geometry={name: tiny, patch_size: 16, dim: 64, dense_heads: false}",
    "fusion={name: aligned_concat}",
    "transforms=[{name: normalize}]",
]

OWN = {"florence2": [], "paligemma": ["vlm.tiny.patch_size=16"]}


def build(vlm: str, name: str, *words: str) -> VLAPolicy:
    tree = framework_tree(name, "tiny", [f"vlm.name={vlm}", "vlm.base_vlm=tiny", *OWN[vlm], *words])
    config = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
    torch.manual_seed(0)
    return build_policy(config, {"default": make_spec(2, CAMERA["tiny"], CAMERA["tiny"], config.horizon)})


@pytest.mark.parametrize(
    ("vlm", "name", "steps", "words"),
    [
        ("florence2", "QwenGR00T", 50, []),
        ("florence2", "QwenOFT", 50, []),
        ("florence2", "QwenPI", 50, FUSED),
        ("florence2", "QwenAdapter", 50, []),
        ("paligemma", "QwenGR00T", 40, []),
        ("paligemma", "QwenOFT", 40, []),
        ("paligemma", "QwenPI", 40, FUSED),
    ],
)
def test_a_policy_learns_and_its_checkpoint_acts_alike(
    vlm: str, name: str, steps: int, words: list[str], tmp_path: Path
) -> None:
    policy = build(vlm, name, *words)
    assert policy.collator is not None
    pipeline, spec = policy.pipelines["default"], policy.specs["default"]
    batch = policy.collator([pipeline(make_sample(spec, i)) for i in range(2)])
    assert batch.actions is not None
    noise = torch.randn(2, 2, *batch.actions.shape[1:])
    optimizer, losses = torch.optim.AdamW(policy.model.parameters(), lr=3e-3), []
    for _ in range(steps):
        loss = torch.stack(list(policy.model(batch, noise, torch.full((2, 2), 0.4)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    policy.eval()
    observation = make_observation(spec, 0)
    loaded = VLAPolicy.from_pretrained(policy.save(tmp_path / f"steps_{steps}", step=steps))
    (ours,), (theirs,) = policy.act([observation], [1]), loaded.act([observation], [1])
    np.testing.assert_array_equal(ours.actions, theirs.actions)


@pytest.mark.parametrize("vlm", OWN)
def test_a_head_that_speaks_is_refused(vlm: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"framework\.vlm: '{vlm}' has no decoder, and framework\.head 'fast'"
    ):
        build(vlm, "QwenFast")
