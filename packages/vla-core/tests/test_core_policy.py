from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from vla_core import UserError, VLAPolicy
from vla_core.assemble import build_policy
from vla_core.framework import FrameworkConfig
from vla_core.model import VLAModel
from vla_core.testing import make_observation, make_sample, make_spec, tiny_policy

SPEC = make_spec()


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(SPEC)


def _equal(a, b):
    return all(np.array_equal(x.actions, y.actions) for x, y in zip(a, b, strict=True))


def test_a_batched_answer_is_the_solo_one(policy):
    observations = [make_observation(SPEC, i) for i in range(4)]
    seeds = [3, 1, 4, 1]
    batched = policy.act(observations, seeds)
    for i in range(4):
        solo = policy.act([observations[i]], [seeds[i]])[0]
        np.testing.assert_allclose(solo.actions, batched[i].actions, atol=1e-6)
        assert solo.spec == SPEC.action
        assert solo.actions.shape == (4, 7)
        assert solo.actions.dtype == np.float32
    back = policy.act(observations[::-1], seeds[::-1])[::-1]
    for a, b in zip(batched, back, strict=True):
        np.testing.assert_allclose(a.actions, b.actions, atol=1e-6)


def test_seeds_decide(policy):
    observation = make_observation(SPEC)
    assert _equal(policy.act([observation], [5]), policy.act([observation], [5]))
    assert not _equal(policy.act([observation], [5]), policy.act([observation], [6]))
    assert _equal(policy.act([observation], [np.int64(5)]), policy.act([observation], [5]))


def test_noise_depends_on_the_row_s_seed_alone(policy, monkeypatch):
    seen = []
    predict = policy.model.predict
    monkeypatch.setattr(
        policy.model, "predict", lambda b, noise, *rest: seen.append(noise) or predict(b, noise, *rest)
    )
    torch.manual_seed(0)
    policy.act([make_observation(SPEC, 1)], [7])
    torch.manual_seed(1)
    policy.act([make_observation(SPEC, i) for i in range(3)], [9, 8, 7])
    assert seen[0].shape == (1, 4, 7)
    assert torch.equal(seen[0][0], seen[1][2])
    assert torch.equal(seen[0][0], torch.randn(4, 7, generator=torch.Generator().manual_seed(7)))


def test_act_leaves_the_global_generator_alone(policy):
    torch.manual_seed(0)
    policy.act([make_observation(SPEC)], [1])
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_order_of_images_is_irrelevant(policy):
    observation = make_observation(SPEC)
    swapped = replace(observation, images=dict(reversed(list(observation.images.items()))))
    assert _equal(policy.act([observation], [1]), policy.act([swapped], [1]))


def test_no_observations_no_answers(policy):
    assert policy.act([], []) == []


def test_answers_are_in_the_robot_s_units():
    policy = tiny_policy(SPEC)
    with torch.no_grad():
        policy.model.head.out.weight.zero_()
        policy.model.head.out.bias.zero_()
    policy.model.head.config = replace(policy.model.head.config, noise_scale=0.0)
    stats = SPEC.statistics["action"]
    got = policy.act([make_observation(SPEC)], [0])[0].actions
    np.testing.assert_allclose(got, np.tile((stats.q01 + stats.q99) / 2, (4, 1)), atol=1e-6)


def _images(**changes):
    def change(observation):
        return replace(observation, images={**observation.images, **changes})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda o: replace(o, images={"camera_0": o.images["camera_0"]}),
            "camera 'camera_1' is missing; got ['camera_0']",
        ),
        (
            _images(camera_1=np.zeros((8, 8, 3), np.uint8)),
            "camera 'camera_1': expected uint8 (32, 32, 3), got uint8 (8, 8, 3)",
        ),
        (_images(camera_1=np.zeros((32, 32, 3), np.float32)), "got float32 (32, 32, 3)"),
        (
            _images(wrist=np.zeros((32, 32, 3), np.uint8)),
            "camera 'wrist' is not in the spec (known: camera_0",
        ),
        (lambda o: replace(o, state=None), "state is missing; this policy needs 7 dims"),
        (lambda o: replace(o, state=o.state[:3]), "state: expected shape (7,), got (3,)"),
        (lambda o: replace(o, state=np.full(7, np.nan, np.float32)), "state holds NaN or infinity"),
        (lambda o: replace(o, state=np.full(7, np.inf, np.float32)), "state holds NaN or infinity"),
        (
            lambda o: replace(o, embodiment="defautl"),
            "no embodiment 'defautl' here (did you mean 'default'?)",
        ),
        (
            lambda o: replace(o, depth={"camera_0": np.ones((8, 8), np.float32)}),
            "depth of camera 'camera_0': expected (32, 32), got (8, 8)",
        ),
        (
            lambda o: replace(o, intrinsics={"camera_1": np.ones(3, np.float32)}),
            "intrinsics of camera 'camera_1': expected (3, 3), got (3,)",
        ),
        (
            lambda o: replace(o, extrinsics={"camera_1": np.full((4, 4), np.nan, np.float32)}),
            "extrinsics of camera 'camera_1' holds NaN or infinity",
        ),
    ],
)
def test_bad_observations(policy, change, message):
    with pytest.raises(UserError) as error:
        policy.act([make_observation(SPEC), change(make_observation(SPEC))], [0, 1])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_robot_without_state_takes_none():
    spec = replace(SPEC, observation=replace(SPEC.observation, state=()))
    policy = tiny_policy(spec)
    assert policy.act([make_observation(spec)], [0])[0].actions.shape == (4, 7)
    with pytest.raises(UserError, match="state was given, and this policy takes none"):
        policy.act([make_observation(SPEC)], [0])


def test_misuse(policy):
    observation = make_observation(SPEC)
    with pytest.raises(ValueError, match="2 observations need as many seeds, got 1"):
        policy.act([observation] * 2, [0])
    policy.model.train()
    with pytest.raises(ValueError, match=r"policy.eval\(\)"):
        policy.act([observation], [0])
    policy.eval()
    with pytest.raises(ValueError, match="needs actions and action_mask"):
        policy.model(policy.collate([observation]))
    with pytest.raises(ValueError, match="at least one pipeline"):
        VLAPolicy(policy.model, {})
    with pytest.raises(ValueError, match="both a geometry encoder and a fusion"):
        VLAModel(policy.model.vlm, policy.model.head, geometry=policy.model.head)


def test_training_step_reaches_all_parameters(policy):
    pipeline = policy.pipelines["default"]
    batch = policy.collator([pipeline(make_sample(SPEC, i, valid=3)) for i in range(2)])
    terms = policy.model(batch)
    assert set(terms) == {"action_l1"}
    terms["action_l1"].backward()
    assert all(p.grad is not None for p in policy.model.parameters())
    policy.model.zero_grad(set_to_none=True)


def test_padded_steps_do_not_reach_the_loss(policy):
    pipeline, samples = policy.pipelines["default"], []
    for garbage in (0.0, 50.0):
        sample = make_sample(SPEC, 0, valid=2)
        sample.actions[2:] = garbage
        samples.append(pipeline(sample))
    losses = [policy.model(policy.collator([s]))["action_l1"].item() for s in samples]
    assert losses[0] == losses[1]


def test_two_embodiments(fakes):
    small = replace(
        SPEC,
        action=replace(SPEC.action, groups=SPEC.action.groups[:1]),
        observation=replace(SPEC.observation, cameras=SPEC.observation.cameras[:1]),
        embodiment="small",
    )
    config = FrameworkConfig(horizon=4, vlm={"name": "fake"}, head={"name": "fake"})
    policy = build_policy(config, {"default": SPEC, "small": small}).eval()
    observations = [make_observation(small, 0), make_observation(SPEC, 1)]
    chunks = policy.act(observations, [0, 1])
    assert [c.actions.shape for c in chunks] == [(4, 3), (4, 7)]
    for observation, seed, chunk in zip(observations, [0, 1], chunks, strict=True):
        np.testing.assert_allclose(policy.act([observation], [seed])[0].actions, chunk.actions, atol=1e-6)
    assert policy.specs == {"default": SPEC, "small": small}
    assert policy.framework == "custom"


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_answer_the_same_and_share_nothing(policy, clone):
    other = clone(policy)
    observation = make_observation(SPEC)
    assert _equal(other.act([observation], [1]), policy.act([observation], [1]))
    before = policy.act([observation], [1])
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.zero_()
    other.config["name"] = "changed"
    assert _equal(policy.act([observation], [1]), before)
    assert policy.framework == "Fake"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instruction": ""}, "instruction is empty; say what to do"),
        ({"instruction": " \n"}, "instruction is empty"),
        ({"instruction": None}, "instruction: expected a text, got a NoneType"),
        ({"state": [0.0] * 7}, "state: expected a numpy array, got a list"),
        ({"state": torch.zeros(7)}, "state: expected a numpy array, got a Tensor"),
        ({"state": np.zeros(7, complex)}, "state: expected numbers, got complex128"),
        ({"state": np.zeros(7, bool)}, "state: expected numbers, got bool"),
        ({"state": np.full(7, "0.1")}, "state: expected numbers, got <U3"),
        ({"state": np.zeros(7, object)}, "state: expected numbers, got object"),
        (
            {"depth": {"camera_0": np.full((32, 32), 1200, np.uint16)}},
            "depth of camera 'camera_0': uint16 is no distance in metres (millimetres? divide by 1000)",
        ),
    ],
)
def test_what_would_be_cast_in_silence_or_end_in_a_traceback(change, said):
    seen = replace(make_observation(SPEC), **change)
    with pytest.raises(UserError, match=re.escape(said)):
        tiny_policy(SPEC).eval().act([seen], [0])


def test_pictures_that_are_no_arrays():
    seen = make_observation(SPEC)
    images = {name: torch.tensor(image) for name, image in seen.images.items()}
    with pytest.raises(UserError, match=r"camera 'camera_0': expected uint8 \(32, 32, 3\), got a Tensor"):
        tiny_policy(SPEC).eval().act([replace(seen, images=images)], [0])
