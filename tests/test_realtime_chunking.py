"""Real-time chunking through a whole policy: the frozen steps are kept in real units, the rest is bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from vla_core import PreviousChunk, UserError, VLAPolicy
from vla_core.assemble import build_policy
from vla_core.config import build_config
from vla_core.framework import FrameworkConfig
from vla_core.testing import make_observation, make_spec
from vla_train._smoke_sizes import CAMERA, framework_tree


def build(name: str, **head: Any) -> VLAPolicy:
    tree = framework_tree(name, "tiny", [f"head.{key}={value}" for key, value in head.items()])
    config = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
    spec = make_spec(2, CAMERA["tiny"], CAMERA["tiny"], config.horizon)
    torch.manual_seed(0)
    policy = build_policy(config, {spec.embodiment: spec}).eval()
    with torch.no_grad():
        for parameter in policy.model.head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize("name", ["QwenGR00T", "QwenPI"])
@pytest.mark.parametrize(
    "head", [{}, {"rtc": "training_time", "rtc_max_delay": 3}], ids=["guided", "trained"]
)
def test_a_policy_keeps_what_is_executed_already(name: str, head: dict[str, Any]) -> None:
    policy = build(name, **head)
    (spec,) = policy.specs.values()
    observations = [make_observation(spec, seed) for seed in (0, 1)]
    first, other = policy.act(observations, [3, 4])
    left = first.actions[3:] + np.float32(0.1)  # the robot is three steps on
    free = policy.act(observations, [5, 6])
    bound = policy.act(observations, [5, 6], previous=[PreviousChunk(left, 2), None])
    np.testing.assert_array_equal(bound[0].actions[:2], left[:2])
    np.testing.assert_allclose(bound[1].actions, free[1].actions, atol=1e-5)
    assert not np.allclose(bound[0].actions[2:], free[0].actions[2:], atol=1e-4)
    assert not np.allclose(first.actions, other.actions)


def test_a_regression_head_refuses() -> None:
    policy = build("QwenOFT")
    (spec,) = policy.specs.values()
    observation = make_observation(spec, 0)
    (chunk,) = policy.act([observation], [0])
    with pytest.raises(UserError, match="a MLPRegression cannot keep the start of an earlier chunk"):
        policy.act([observation], [0], previous=[PreviousChunk(chunk.actions[1:], 1)])
