"""The seams of the core: a pipeline a robot, parameters where they live, files that others may read."""

from __future__ import annotations

import os
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from vla_core import ConfigError, VLAPolicy
from vla_core.assemble import build_policy
from vla_core.build import ModelDims, build_model, build_pipelines
from vla_core.framework import FrameworkConfig
from vla_core.initialisation import without_random_init
from vla_core.resolve import resolve
from vla_core.testing import make_observation, make_spec, tiny_policy
from vla_core.transforms import Pipeline

SPEC = make_spec()
SMALL = replace(
    make_spec(1, 24, 40, embodiment="small"),
    observation=replace(make_spec(1, 24, 40).observation, state=()),
    action=replace(SPEC.action, groups=SPEC.action.groups[:2]),
)
FAKE = {"vlm": {"name": "fake"}, "head": {"name": "fake"}}


def test_two_robots_with_pipelines_of_their_own(fakes, tmp_path):
    config = FrameworkConfig(
        horizon=4,
        transforms=[{"name": "relative_actions", "groups": {"position": "position"}}],
        embodiments={"small": {"transforms": [{"name": "resize", "height": 32, "width": 32}]}},
        **FAKE,
    )
    policy = build_policy(config, {"default": SPEC, "small": SMALL}).eval()
    assert [len(p.steps) for p in policy.pipelines.values()] == [1, 1]
    observations = [make_observation(SMALL, 1), make_observation(SPEC, 2)]
    chunks = policy.act(observations, [1, 2])
    assert [chunk.actions.shape for chunk in chunks] == [(4, 6), (4, 7)]
    again = VLAPolicy.from_pretrained(policy.save(tmp_path / "steps_1", step=1))
    for a, b in zip(again.act(observations, [1, 2]), chunks, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
    assert again.config == policy.config
    # A relative target of the one counts from its state, one of the other from nothing.
    with torch.no_grad():
        for parameter in policy.model.head.parameters():
            parameter.zero_()
    policy.model.head.config = replace(policy.model.head.config, noise_scale=0.0)
    small, large = policy.act(observations, [1, 2])
    assert not small.actions.any()
    np.testing.assert_allclose(large.actions[0, :3], observations[1].state[:3], rtol=1e-6)


def test_a_robot_that_is_not_there_is_named(fakes):
    config = FrameworkConfig(horizon=4, embodiments={"smal": {"transforms": []}}, **FAKE)
    with pytest.raises(ConfigError, match=r"no robot 'smal' here \(robots: default\)"):
        build_policy(config, {"default": SPEC})
    with pytest.raises(ConfigError, match=r"framework.embodiments.default must be \{transforms: \[...\]\}"):
        FrameworkConfig(embodiments={"default": {"cameras": []}}, **FAKE)


def test_parameters_are_made_where_they_will_live(fakes):
    resolved = resolve(FrameworkConfig(horizon=4, **FAKE))
    dims = ModelDims.of(build_pipelines(resolved, {"default": SPEC}), resolved)
    model = build_model(resolved, dims, device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert build_model(resolved, dims).device.type == "cpu"


def test_building_for_a_checkpoint_draws_nothing():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with without_random_init():
        layer = nn.TransformerEncoderLayer(16, 2, 32)
        nn.init.trunc_normal_(nn.Embedding(4, 4).weight)
        kept = torch.randn(3, generator=torch.Generator().manual_seed(1))
        assert torch.randn(2, 3).shape == (2, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(layer.norm1.weight, torch.ones(16))
    assert torch.equal(kept, torch.randn(3, generator=torch.Generator().manual_seed(1)))


def test_loading_leaves_the_global_generator_alone(fakes, tmp_path):
    path = tiny_policy(SPEC).save(tmp_path / "steps_1", step=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    VLAPolicy.from_pretrained(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_follow_the_umask_like_their_siblings(tmp_path):
    before = os.umask(0o022)
    try:
        path = tiny_policy(SPEC).save(tmp_path / "steps_1", step=1)
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.iterdir() if p.is_file()}
    assert set(modes.values()) == {0o644}, modes


def test_state_and_action_groups_of_one_name_are_told_apart():
    def modes(groups):
        pipeline = Pipeline([{"name": "normalize", "groups": groups}], SPEC)
        state, actions = make_observation(SPEC, 3).state, np.full((1, 7), 0.3, np.float32)
        seen = pipeline.observe(make_observation(SPEC, 3)).state
        return set(seen[:3]) <= {0.0, 1.0}, set(pipeline.actions(actions, state)[0, :3]) <= {0.0, 1.0}

    assert modes({"action.position": "binary"}) == (False, True)
    assert modes({"state.position": "binary"}) == (True, False)
    with pytest.raises(ConfigError, match=r"write 'state.position' or 'action.position'"):
        modes({"position": "binary"})
    with pytest.raises(ConfigError, match=r"no group 'state.positon' \(did you mean 'state.position'"):
        modes({"state.positon": "binary"})


def test_a_name_that_an_older_checkpoint_used_for_both_still_means_both(fakes, tmp_path):
    config = FrameworkConfig(
        horizon=4,
        transforms=[{"name": "normalize", "groups": {"action.gripper": "binary", "state.gripper": "binary"}}],
        **FAKE,
    )
    policy = build_policy(config, {"default": SPEC}).eval()
    path = policy.save(tmp_path / "steps_1", step=1)
    text = yaml.safe_load((path / "config.yaml").read_text())
    text["framework"]["transforms"][0]["groups"] = {"gripper": "binary"}
    del text["framework"]["embodiments"]
    (path / "config.yaml").write_text(yaml.safe_dump(text))
    loaded = VLAPolicy.from_pretrained(path)
    observation = make_observation(SPEC, 5)
    np.testing.assert_array_equal(
        loaded.act([observation], [0])[0].actions, policy.act([observation], [0])[0].actions
    )
