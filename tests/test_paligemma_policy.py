"""PaliGemma under the heads and fusions of the other packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from vla_core.build import FrameworkConfig, build_policy
from vla_core.checkpoint import save_checkpoint
from vla_core.config import build_config
from vla_core.errors import ConfigError
from vla_core.policy import VLAPolicy
from vla_core.testing import make_observation, make_sample, make_spec
from vla_train._smoke_sizes import framework_tree

SIZE = 64
FUSED = [
    "geometry={name: tiny, patch_size: 16, dim: 64, dense_heads: false}",
    "fusion={name: aligned_concat}",
    "transforms=[{name: normalize}]",
]


def build(name: str, *words: str) -> VLAPolicy:
    tree = framework_tree(
        name, "tiny", ["vlm.name=paligemma", "vlm.base_vlm=tiny", "vlm.tiny.patch_size=16", *words]
    )
    config = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
    torch.manual_seed(0)
    return build_policy(config, {"default": make_spec(2, SIZE, SIZE, config.horizon)})


@pytest.mark.parametrize(("name", "words"), [("QwenGR00T", []), ("QwenOFT", []), ("QwenPI", FUSED)])
def test_a_policy_learns_and_its_checkpoint_acts_alike(name: str, words: list[str], tmp_path: Path) -> None:
    policy = build(name, *words)
    assert policy.collator is not None
    pipeline, spec = policy.pipelines["default"], policy.specs["default"]
    batch = policy.collator([pipeline(make_sample(spec, i)) for i in range(2)])
    assert batch.actions is not None
    noise = torch.randn(2, 2, *batch.actions.shape[1:])
    optimizer, losses = torch.optim.AdamW(policy.parameters(), lr=3e-3), []
    for _ in range(40):
        loss = torch.stack(list(policy(batch, noise, torch.full((2, 2), 0.4)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    policy.eval()
    observation = make_observation(spec, 0)
    loaded = VLAPolicy.from_pretrained(save_checkpoint(policy, tmp_path / "steps_40", step=40))
    (ours,), (theirs,) = policy.act([observation], [1]), loaded.act([observation], [1])
    np.testing.assert_array_equal(ours.actions, theirs.actions)


def test_a_head_that_speaks_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"framework\.vlm: 'paligemma' has no decoder, and framework\.head 'fast'"
    ):
        build("QwenFast")
