from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from vla_core import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.batch import Role
from vla_core.collate import PolicyCollator
from vla_core.interfaces import PromptSpec
from vla_core.testing import make_observation, make_sample, make_spec
from vla_core.testing.models import FakeTextCollator

ARM = make_spec(n_cameras=3, height=8, width=12, horizon=5, embodiment="arm")
CAR = RobotSpec(
    ObservationSpec((CameraSpec("front", 8, 12),), (GroupSpec("speed", 2, "m/s"),)),
    ActionSpec((GroupSpec("wheels", 4, "rad/s"),), 3, 20.0),
    embodiment="car",
)
STILL = RobotSpec(ObservationSpec((CameraSpec("eye", 8, 12),)), CAR.action, embodiment="still")


def _collator(*specs):
    views = max(len(s.observation.cameras) for s in specs)
    return PolicyCollator(FakeTextCollator(views, PromptSpec()), {s.embodiment: s for s in specs})


def test_two_embodiments_are_padded_and_masked():
    samples = [make_sample(CAR, 1, valid=2), make_sample(ARM, 2)]
    batch = _collator(ARM, CAR)(samples)
    assert len(batch) == 2
    assert batch.images.shape == (2, 3, 3, 8, 12)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    assert batch.view_mask.tolist() == [[True, False, False], [True, True, True]]
    assert not batch.tokens.all_views
    assert _collator(ARM, CAR)(samples[1:]).to("cpu").tokens.all_views
    assert not batch.images[0, 1:].any()
    for v in range(3):
        expected = samples[1].observation.images[f"camera_{v}"].transpose(2, 0, 1)
        np.testing.assert_array_equal(batch.images[1, v], expected)
    assert batch.embodiment.tolist() == [1, 0]
    assert batch.state.shape == batch.state_mask.shape == (2, 7)
    assert batch.state_mask.sum(1).tolist() == [2, 7]
    np.testing.assert_array_equal(batch.state[0, :2], samples[0].observation.state)
    assert not batch.state[0, 2:].any()
    assert batch.actions.shape == batch.action_mask.shape == (2, 5, 7)
    assert batch.action_mask[0, :2, :4].all()
    assert int(batch.action_mask[0].sum()) == 8
    assert not batch.actions[0][~batch.action_mask[0]].any()
    np.testing.assert_array_equal(batch.actions[1], samples[1].actions)
    assert {t.dtype for t in (batch.state, batch.actions)} == {torch.float32}
    assert batch.tokens.input_ids.shape[0] == 2
    assert (batch.tokens.roles == Role.INSTRUCTION).any(1).all()


def test_views_follow_the_spec_whatever_the_order_of_the_dict():
    sample = make_sample(ARM, 0)
    images = dict(reversed(list(sample.observation.images.items())))
    shuffled = replace(sample, observation=replace(sample.observation, images=images))
    first, second = _collator(ARM)([sample]), _collator(ARM)([shuffled])
    assert torch.equal(first.images, second.images)


def test_missing_views_and_states_are_masked():
    sample = make_sample(ARM, 0)
    images = {n: i for n, i in sample.observation.images.items() if n != "camera_1"}
    batch = _collator(ARM)(
        [replace(sample, observation=replace(sample.observation, images=images, state=None))]
    )
    assert batch.view_mask.tolist() == [[True, False, True]]
    assert not batch.images[0, 1].any()
    assert not batch.state_mask.any()


def test_robots_without_state():
    batch = _collator(STILL)([make_sample(STILL, 0)])
    assert batch.state is None
    assert batch.state_mask is None
    mixed = _collator(STILL, CAR)([make_sample(STILL, 0), make_sample(CAR, 0)])
    assert mixed.state_mask.tolist() == [[False, False], [True, True]]


def test_inference_has_no_targets():
    batch = _collator(ARM)([make_sample(ARM, 0)], actions=False)
    assert batch.actions is None
    assert batch.action_mask.all()
    both = _collator(ARM, CAR)([make_sample(ARM, 0), make_sample(CAR, 0)], actions=False)
    assert both.action_mask.any(1).sum(1).tolist() == [ARM.action.dim, CAR.action.dim]


def test_the_observations_at_the_chunks_ends_are_a_batch_of_their_own():
    samples = [replace(make_sample(ARM, 0), future=make_observation(ARM, 7)), make_sample(ARM, 1)]
    collator = _collator(ARM)
    assert collator(samples).future is None
    batch = collator(samples, future=True).to("cpu")
    assert batch.future_mask.tolist() == [True, False]
    alone = collator([replace(s, observation=s.future or s.observation) for s in samples], actions=False)
    assert torch.equal(batch.future.images, alone.images)
    assert torch.equal(batch.future.state, alone.state)
    assert torch.equal(batch.future.tokens.input_ids, alone.tokens.input_ids)
    assert batch.future.actions is None
    assert batch.future.future is None
    assert batch.to("meta").future.images.device.type == "meta"


def test_masked_targets_are_zero_even_if_nan():
    sample = make_sample(ARM, 0, valid=2)
    sample.actions[2:] = np.nan
    assert torch.isfinite(_collator(ARM)([sample]).actions).all()


def _with(sample, **fields):
    return replace(sample, observation=replace(sample.observation, **fields))


def test_cameras_say_which_views_they_know():
    rng = np.random.default_rng(0)
    shapes = {"intrinsics": (3, 3), "extrinsics": (4, 4), "depth": (8, 12)}
    samples = []
    for seed in range(2):
        sample = make_sample(ARM, seed)
        given = {
            f: {n: rng.normal(size=s).astype(np.float32) for n in sample.observation.images}
            for f, s in shapes.items()
        }
        samples.append(_with(sample, **given))
    collator = _collator(ARM)
    full = collator(samples).cameras
    for field, shape in shapes.items():
        tensor = getattr(full, field)
        assert tensor.shape == (2, 3, *shape)
        np.testing.assert_array_equal(tensor[1, 2], getattr(samples[1].observation, field)["camera_2"])
        absent = collator([samples[0], _with(samples[1], **{field: None})]).cameras
        assert getattr(full.known, field) is None
        assert getattr(absent.known, field).tolist() == [[True] * 3, [False] * 3]
        np.testing.assert_array_equal(getattr(absent, field)[0], tensor[0])
        assert not getattr(absent, field)[1].any()
        partial = {n: v for n, v in getattr(samples[1].observation, field).items() if n != "camera_0"}
        some = collator([samples[0], _with(samples[1], **{field: partial})]).cameras
        assert getattr(some.known, field).tolist() == [[True] * 3, [False, True, True]]
        none = collator([_with(sample, **{field: None}) for sample in samples]).cameras
        assert getattr(none, field) is getattr(none.known, field) is None
        assert sum(getattr(none, f) is not None for f in shapes) == 2
    # A view without an image needs no camera.
    observation = samples[0].observation
    two = {n: i for n, i in observation.images.items() if n != "camera_0"}
    k = {n: v for n, v in observation.intrinsics.items() if n != "camera_0"}
    cameras = collator([_with(samples[0], images=two, intrinsics=k)]).cameras
    assert not cameras.intrinsics[0, 0].any()


def test_wrong_shapes_name_the_field():
    collator, sample = _collator(ARM, CAR), make_sample(ARM, 0)
    images = sample.observation.images
    cases = [
        (
            _with(sample, images={**images, "camera_1": images["camera_1"][:4]}),
            r"camera 'camera_1': expected uint8 \(8, 12, 3\), got uint8 \(4,",
        ),
        (
            _with(sample, images={**images, "camera_1": images["camera_1"] / 255}),
            r"expected uint8 \(8, 12, 3\), got float64",
        ),
        (_with(sample, state=np.zeros(6, np.float32)), r"state: expected \(7,\), got \(6,\)"),
        (replace(sample, actions=sample.actions[:3]), r"actions have shape \(3, 7\), the spec says \(5, 7\)"),
        (replace(sample, action_mask=sample.action_mask[:, 0]), r"action_mask have shape \(5,\)"),
        (
            _with(sample, intrinsics={n: np.ones(3, np.float32) for n in images}),
            r"intrinsics of camera 'camera_0': expected \(3, 3\), got \(3,\)",
        ),
        (_with(sample, embodiment="arn"), "no embodiment 'arn' here"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            collator([bad])


def test_moving_a_batch_keeps_dtypes_and_none():
    batch = _collator(ARM)([make_sample(ARM, 0)], actions=False).to("cpu")
    assert batch.images.dtype == torch.uint8
    assert batch.tokens.input_ids.dtype == torch.long
    assert batch.actions is None
    assert batch.cameras.depth is None
    meta = batch.to("meta")
    assert meta.tokens.roles.device.type == meta.state.device.type == "meta"
