"""Real-time chunking around the head: the previous chunk re-expressed, kept, and refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from vla_core import PreviousChunk, UserError
from vla_core.assemble import build_policy
from vla_core.framework import FrameworkConfig
from vla_core.realtime import overlap_weights
from vla_core.registry import override
from vla_core.testing import FakeHead, make_observation, make_spec, tiny_policy
from vla_core.traits import HeadTraits

SPEC = make_spec(horizon=6)
RELATIVE = [{"name": "relative_actions", "groups": {"position": "position"}}]
DELTA = [{"name": "relative_actions", "groups": {"position": "position"}, "mode": "delta"}]
ROTATED = [{"name": "convert_rotation", "groups": ["rotation"], "to": "rotation_6d"}]
NORMALIZED = [{"name": "normalize", "action": "min_max", "clip": 1.0}]
LISTS = {"absolute": [], "relative": RELATIVE, "delta": DELTA, "rotation": ROTATED, "normalize": NORMALIZED}


class KeepingHead(FakeHead):
    """Answers the constraint where there is one, and remembers it."""

    traits = HeadTraits(takes_constraint=True)

    def sample(self, inputs, noise, steps=None, constraint=None):
        self.seen = constraint
        free = super().sample(inputs, noise, steps)
        if constraint is None:
            return free
        return torch.where((constraint.weights > 0)[..., None], constraint.actions, free)


def build(transforms, specs=None):
    undo = override("vla.heads", "keeping", KeepingHead)
    config = FrameworkConfig(horizon=6, vlm={"name": "fake"}, head={"name": "keeping"}, transforms=transforms)
    try:
        return build_policy(config, specs or {"default": SPEC}).eval()
    finally:
        undo()


def chunk(n_left=4, n_frozen=2, seed=0):
    actions = np.random.default_rng(seed).uniform(-1, 1, (n_left, 7)).astype(np.float32)
    return PreviousChunk(actions, n_frozen)


@pytest.mark.parametrize("name", list(LISTS))
def test_what_is_left_means_the_same_from_the_present_state(fakes, name):
    """The head gets the old targets as seen from where the robot is now, so that they come back."""
    policy, previous = build(LISTS[name]), chunk()
    for seed in (1, 2):  # other states, same targets
        observation = make_observation(SPEC, seed)
        (answer,) = policy.act([observation], [0], previous=[previous])
        np.testing.assert_array_equal(answer.actions[:2], previous.actions[:2])
        position = answer.actions[:, :3]
        np.testing.assert_allclose(position[:4], previous.actions[:, :3], atol=1e-5)
        seen = policy.model.head.seen.actions[0].numpy()
        if name == "relative":
            offset = previous.actions[:, :3] - observation.state[:3]
            np.testing.assert_allclose(seen[:4, :3], offset, atol=1e-6)
        if name == "delta":
            np.testing.assert_allclose(
                seen[0, :3], previous.actions[0, :3] - observation.state[:3], atol=1e-6
            )
            np.testing.assert_allclose(seen[1:4, :3], np.diff(previous.actions[:, :3], axis=0), atol=1e-6)
        assert (seen[4:] == 0).all()


def test_frozen_actions_come_back_exactly_even_if_normalisation_clips(fakes):
    policy, previous = build(NORMALIZED), chunk()
    previous.actions[:] *= 3
    (answer,) = policy.act([make_observation(SPEC)], [0], previous=[previous])
    np.testing.assert_array_equal(answer.actions[:2], previous.actions[:2])
    assert np.abs(answer.actions[2:4]).max() < 1.01


def test_rows_with_and_without_a_previous_chunk(fakes):
    narrow = replace(SPEC, action=replace(SPEC.action, groups=SPEC.action.groups[:1]), embodiment="narrow")
    policy = build([], {"default": SPEC, "narrow": narrow})
    observations = [make_observation(s, i) for i, s in enumerate((SPEC, narrow, SPEC))]
    free = policy.act(observations, [0, 1, 2])
    assert policy.model.head.seen is None
    small = PreviousChunk(chunk().actions[:, :3], 1)
    got = policy.act(observations, [0, 1, 2], previous=[None, small, chunk()])
    np.testing.assert_array_equal(got[0].actions, free[0].actions)
    np.testing.assert_array_equal(got[1].actions[:4], small.actions)
    assert got[1].actions.shape == (6, 3)
    weights = policy.model.head.seen.weights
    assert weights[0].tolist() == [0] * 6
    assert policy.model.head.seen.frozen.sum(1).tolist() == [0, 1, 2]
    assert policy.model.head.seen.n_frozen == 2
    policy.act(observations, [0, 1, 2], previous=[None] * 3)
    assert policy.model.head.seen is None


def test_weights_fall_from_the_frozen_steps_to_the_end_of_the_previous_chunk():
    weights = overlap_weights(2, 5, 8)
    assert weights[:2].tolist() == [1, 1]
    c = 3 / 4  # step 2 of 5, 2 frozen
    assert weights[2] == pytest.approx(c * (np.exp(c) - 1) / (np.e - 1), rel=1e-6)
    assert (np.diff(weights[1:6]) < 0).all()
    assert weights[5:].tolist() == [0, 0, 0]
    assert overlap_weights(0, 3, 4).max() < 1
    assert overlap_weights(3, 3, 4).tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("previous", "message"),
    [
        (PreviousChunk(np.zeros((7, 7), np.float32), 1), "shape (7, 7), expected 1 to 6 steps of 7 dims"),
        (PreviousChunk(np.zeros((3, 6), np.float32), 1), "shape (3, 6)"),
        (PreviousChunk(np.zeros(7, np.float32), 1), "shape (7,)"),
        (PreviousChunk(np.zeros((3, 7), np.float32), 4), "n_frozen is 4, it must be in 0..3"),
        (PreviousChunk(np.zeros((3, 7), np.float32), -1), "n_frozen is -1"),
        (PreviousChunk(np.zeros((6, 7), np.float32), 6), "nothing of the next 6 steps is free"),
        (PreviousChunk(np.full((3, 7), np.nan, np.float32), 1), "NaN or infinity"),
    ],
)
def test_bad_previous_chunks(fakes, previous, message):
    with pytest.raises(UserError) as error:
        build([]).act([make_observation(SPEC)], [0], previous=[previous])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_heads_that_cannot_refuse():
    policy = tiny_policy(SPEC)
    with pytest.raises(UserError, match="a FakeHead cannot keep the start of an earlier chunk"):
        policy.act([make_observation(SPEC)], [0], previous=[chunk()])
    with pytest.raises(ValueError, match="as many previous chunks"):
        policy.act([make_observation(SPEC)], [0], previous=[])


def test_the_longest_delay(fakes):
    policy = build([])
    assert policy.longest_delay("default") == 5  # one step of six is free
    policy.model.head.traits = HeadTraits(takes_constraint=True, longest_delay=3)  # it was trained for it
    assert policy.longest_delay("default") == 3
    with pytest.raises(UserError, match="no embodiment 'defualt'"):
        policy.longest_delay("defualt")
    with pytest.raises(UserError, match="a FakeHead cannot keep the start of an earlier chunk"):
        tiny_policy(SPEC).longest_delay("default")


def test_view_keys_need_geometry_and_a_cache(fakes):
    policy = tiny_policy(SPEC)
    with pytest.raises(UserError, match="view_keys: given, but this policy computes no geometry"):
        policy.check_view_keys()
