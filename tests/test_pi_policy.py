"""PI0 and PI05 as whole policies: where the state enters, and which backbones the head takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from vla_core.assemble import build_policy
from vla_core.config import build_config
from vla_core.errors import ConfigError
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.testing import make_observation, make_spec
from vla_train._smoke_sizes import framework_tree
from vla_train.presets import load_preset


def policy_of(name: str, **vlm: Any) -> VLAPolicy:
    """The preset at size tiny with its own prompt, and room for it; nothing in the head starts at zero."""
    node = framework_tree(name, "tiny").data["framework"]
    prompt = {key: value for key, value in load_preset(name)["vlm"].items() if key == "prompt"}
    node["vlm"] = {**node["vlm"], "max_text_tokens": 128, **prompt, **vlm}
    config = build_config(FrameworkConfig, node, "framework")
    torch.manual_seed(0)
    spec = make_spec(n_cameras=2, height=64, width=64, horizon=config.horizon)
    policy = build_policy(config, {spec.embodiment: spec}).eval()
    with torch.no_grad():
        for parameter in policy.model.head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize(("name", "in_prompt", "in_head"), [("PI0", False, True), ("PI05", True, False)])
def test_the_state_enters_once_and_changes_the_actions(name: str, in_prompt: bool, in_head: bool) -> None:
    policy = policy_of(name)
    (spec,) = policy.specs.values()
    here = make_observation(spec, 0)
    there = dataclasses.replace(here, state=here.state + 0.5)
    same, moved = (policy.act([o], [3])[0].actions for o in (here, there))
    assert not np.allclose(same, moved)
    np.testing.assert_array_equal(same, policy.act([here], [3])[0].actions)
    ids = [policy.collate([o]).tokens.input_ids for o in (here, there)]
    assert torch.equal(*ids) != in_prompt
    assert hasattr(policy.model.head, "state_proj") == in_head


def test_the_prefix_runs_once_for_all_steps() -> None:
    policy = policy_of("PI0")
    (spec,) = policy.specs.values()
    calls = []
    layer = policy.model.vlm.language_model.layers[0]
    layer.mlp.register_forward_hook(lambda *_: calls.append("prefix"))
    policy.model.head.expert.layers[0].mlp.register_forward_hook(lambda *_: calls.append("step"))
    policy.act([make_observation(spec, 0)], [3])
    assert calls == ["prefix", "step", "step"]


def test_a_backbone_without_keys_and_values_is_refused() -> None:
    node = framework_tree("QwenOFT", "tiny").data["framework"]
    node = {**node, "head": {"name": "pi0"}}
    spec = make_spec(n_cameras=1, height=64, width=64, horizon=node["horizon"])
    with pytest.raises(ConfigError, match="head: pi0 joins the attention of the backbone, and this one"):
        build_policy(build_config(FrameworkConfig, node, "framework"), {spec.embodiment: spec})
