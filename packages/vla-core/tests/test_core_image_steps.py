from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from vla_core import ConfigError, Pipeline, images
from vla_core.testing import make_observation, make_sample, make_spec

SPEC = make_spec(n_cameras=2, height=40, width=60)
SIZES = st.integers(8, 90)


def _camera(height, width, focal=50.0):
    return np.array([[focal, 0, width / 2 + 1.5], [0, focal * 1.1, height / 2 - 2], [0, 0, 1]], np.float32)


def _observation(seed=0, spec=SPEC):
    observation = make_observation(spec, seed)
    rng = np.random.default_rng(seed)
    shapes = {c.name: (c.height, c.width) for c in spec.observation.cameras}
    return replace(
        observation,
        depth={n: rng.uniform(0.1, 2, s).astype(np.float32) for n, s in shapes.items()},
        intrinsics={n: _camera(*s) for n, s in shapes.items()},
    )


def _project(k, point):
    u, v, w = k @ point
    return np.array([u / w, v / w])


@given(height=SIZES, width=SIZES, x=st.floats(-0.4, 0.4), y=st.floats(-0.3, 0.3))
def test_a_point_projects_to_the_same_place_of_the_resized_image(height, width, x, y):
    before = _observation()
    pipeline = Pipeline([{"name": "resize", "height": height, "width": width}], SPEC)
    after = pipeline.observe(before)
    for name in before.images:
        assert after.images[name].shape == (height, width, 3)
        assert after.depth[name].shape == (height, width)
        old, new = (_project(o.intrinsics[name], np.array([x, y, 1.0])) for o in (before, after))
        np.testing.assert_allclose(new / [width, height], old / [60, 40], atol=1e-5)
    assert [(c.height, c.width) for c in pipeline.output_spec.observation.cameras] == [(height, width)] * 2


@given(height=SIZES, width=SIZES, x=st.floats(-0.4, 0.4), y=st.floats(-0.3, 0.3))
def test_padding_keeps_the_aspect_ratio_and_the_geometry(height, width, x, y):
    before = _observation()
    after = Pipeline([{"name": "resize", "height": height, "width": width, "fit": "pad"}], SPEC).observe(
        before
    )
    h, w = images.inside((40, 60), (height, width))
    assert min(height - h, width - w) in (0, 1)
    assert abs(h / 40 - w / 60) <= 2 / 40
    top, left = images.margins((h, w), (height, width))
    for name in before.images:
        assert after.images[name].shape == (height, width, 3)
        inner = images.resize(before.images[name], h, w)
        np.testing.assert_array_equal(after.images[name][top : top + h, left : left + w], inner)
        assert after.images[name].sum(dtype=np.int64) == inner.sum(dtype=np.int64)
        assert (after.depth[name] > 0).sum() == h * w
        old, new = (_project(o.intrinsics[name], np.array([x, y, 1.0])) for o in (before, after))
        np.testing.assert_allclose((new - [left, top]) / [w, h], old / [60, 40], atol=1e-5)


@given(height=SIZES, width=SIZES)
def test_without_antialiasing_pixels_are_those_of_torch(height, width):
    image = _observation().images["camera_0"]
    got = images.resize(image, height, width, antialias=False)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    wanted = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    assert (torch.from_numpy(got).float() - wanted).abs().max() <= 0.51  # half a level of rounding


def test_a_kernel_without_antialiasing_is_refused():
    with pytest.raises(ConfigError, match="antialias: false goes with bilinear, not with bicubic"):
        Pipeline([{"name": "resize", "interpolation": "bicubic", "antialias": False}], SPEC)


@pytest.mark.parametrize("scale", [2, 3])
def test_image_content_moves_with_the_projection_under_resize(scale):
    # A square of s x s pixels becomes one pixel; its centre must project to that pixel's centre.
    image = np.zeros((12 * scale, 8 * scale, 3), np.uint8)
    image[5 * scale : 6 * scale, 2 * scale : 3 * scale] = 255
    k = np.array([[1, 0, 2.5 * scale], [0, 1, 5.5 * scale], [0, 0, 1]], np.float32)
    small = images.resize(image, 12, 8)
    assert np.unravel_index(small[..., 0].argmax(), (12, 8)) == (5, 2)
    u, v = _project(images.resize_intrinsics(k, image.shape[:2], (12, 8)), np.array([0, 0, 1.0]))
    np.testing.assert_allclose([u, v], [2.5, 5.5])
    assert k[0, 2] == 2.5 * scale


@given(height=SIZES, width=SIZES, seed=st.integers(0, 5))
def test_resized_depths_are_depths_that_were_there(height, width, seed):
    depth = np.random.default_rng(seed).uniform(0.1, 2, (40, 60)).astype(np.float32)
    out = images.resize_depth(depth, height, width)
    assert out.dtype == np.float32
    assert np.isin(out, depth).all()
    ramp = np.tile(np.arange(60, dtype=np.float32) + 0.5, (40, 1))
    centres = (np.arange(width) + 0.5) * 60 / width
    np.testing.assert_allclose(images.resize_depth(ramp, height, width)[0], centres, atol=0.5 + 1e-6)


def test_resize_is_deterministic_and_free_at_the_same_size():
    image = _observation().images["camera_0"]
    first = images.resize(image, 17, 23)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, images.resize(image.copy(), 17, 23))
    assert images.resize(image, 40, 60) is image
    flat = np.full((40, 60, 3), 137, np.uint8)
    assert (images.resize(flat, 224, 224) == 137).all()


def test_resize_without_one_of_the_views():
    observation = _observation()
    partial = replace(observation, images={"camera_1": observation.images["camera_1"]})
    out = Pipeline([{"name": "resize", "height": 20, "width": 30}], SPEC).observe(partial)
    assert set(out.images) == set(out.intrinsics) == {"camera_1"}


@given(seed=st.integers(0, 200))
def test_shifted_content_stays_under_its_projection(seed):
    before = _observation()
    for name, (row, col) in {"camera_0": (20, 30), "camera_1": (12, 44)}.items():
        image = np.zeros((40, 60, 3), np.uint8)
        image[row, col] = 255
        before.images[name][:] = image
        before.depth[name][:] = 1.0
        before.depth[name][row, col] = 0.5
        before.intrinsics[name][:2, 2] = (col + 0.5, row + 0.5)
    after = Pipeline([{"name": "random_shift", "pixels": 5}], SPEC).observe(
        before, np.random.default_rng(seed)
    )
    for name in before.images:
        u, v = _project(after.intrinsics[name], np.array([0, 0, 1.0]))
        row, col = int(np.floor(v)), int(np.floor(u))
        assert (after.images[name][row, col] == 255).all()
        assert int(after.images[name].astype(int).sum()) == 3 * 255
        assert after.depth[name][row, col] == 0.5
        assert abs(col - before.intrinsics[name][0, 2]) <= 6


def test_views_shift_apart_and_borders_repeat():
    observation = _observation()
    step = {"name": "random_shift", "pixels": 5}
    out = Pipeline([step], SPEC).observe(observation, np.random.default_rng(0))
    moved = {n: (out.intrinsics[n] - observation.intrinsics[n])[:2, 2].tolist() for n in out.images}
    assert moved["camera_0"] != moved["camera_1"]
    ramp = np.arange(4)[:, None] * np.ones((1, 3))
    np.testing.assert_array_equal(images.shift(ramp, 2, 0)[:, 0], [0, 0, 0, 1])
    np.testing.assert_array_equal(images.shift(ramp, -1, 0)[:, 0], [1, 2, 3, 3])


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    dy=st.integers(-12, 12),
    dx=st.integers(-12, 12),
    deep=st.booleans(),
)
def test_a_shifted_pixel_is_the_nearest_one_of_the_image(height, width, dy, dx, deep):
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3) if deep else (height, width))
    before = image.copy()
    rows = np.clip(np.arange(height) - dy, 0, height - 1)[:, None]
    columns = np.clip(np.arange(width) - dx, 0, width - 1)[None]
    moved = images.shift(image, dy, dx)
    np.testing.assert_array_equal(moved, image[rows, columns])
    moved[:] = 0
    np.testing.assert_array_equal(image, before)


AUGMENT = [{"name": "random_shift"}, {"name": "color_jitter"}]


def test_augmentation_acts_only_with_a_generator():
    pipeline, observation = Pipeline(AUGMENT, SPEC), _observation()
    still = pipeline.observe(observation)
    first, same, other = (pipeline.observe(observation, np.random.default_rng(s)) for s in (1, 1, 2))
    for name, image in observation.images.items():
        np.testing.assert_array_equal(still.images[name], image)
        np.testing.assert_array_equal(first.images[name], same.images[name])
        assert (first.images[name] != image).any()
        assert (first.images[name] != other.images[name]).any()
        assert first.images[name].dtype == np.uint8


def test_no_step_changes_its_input():
    observation = _observation()
    copy = _observation()
    nodes = [*AUGMENT, {"name": "resize", "height": 16, "width": 16}, {"name": "normalize"}]
    Pipeline(nodes, SPEC).observe(observation, np.random.default_rng(0))
    for field in ("images", "depth", "intrinsics"):
        for name, value in getattr(observation, field).items():
            np.testing.assert_array_equal(value, getattr(copy, field)[name])
    np.testing.assert_array_equal(observation.state, copy.state)


def test_the_halves_make_the_whole():
    nodes = [
        {"name": "resize", "height": 20, "width": 20},
        *AUGMENT,
        {"name": "resize", "height": 16, "width": 16},
        {"name": "normalize"},
    ]
    pipeline = Pipeline(nodes, SPEC)
    sample = replace(make_sample(SPEC, 1), future=make_observation(SPEC, 2))
    half = pipeline.deterministic(sample)
    assert half.observation.images["camera_0"].shape == (20, 20, 3)
    whole, joined = (
        pipeline(sample, np.random.default_rng(3)),
        pipeline.random(half, np.random.default_rng(3)),
    )
    observed = pipeline.observe(sample.observation, np.random.default_rng(3))
    for name in whole.observation.images:
        np.testing.assert_array_equal(whole.observation.images[name], joined.observation.images[name])
        np.testing.assert_array_equal(whole.observation.images[name], observed.images[name])
        # The future is seen as the present is: the same shift, the same light.
        future = pipeline.observe(sample.future, np.random.default_rng(3))
        np.testing.assert_array_equal(whole.future.images[name], future.images[name])
        np.testing.assert_array_equal(joined.future.images[name], future.images[name])
    np.testing.assert_array_equal(whole.future.state, pipeline.observe(sample.future).state)
    np.testing.assert_array_equal(whole.observation.state, observed.state)
    np.testing.assert_array_equal(whole.actions, half.actions)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "resize", "height": 0}, "height'?: must be >= 1, got 0"),
        ({"name": "random_shift", "pixels": -1}, "pixels'?: must be >= 0, got -1"),
        ({"name": "color_jitter", "brightness": "high"}, "expected a float in \\[0, 1\\], got 'high'"),
    ],
)
def test_mistakes(node, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline([node], SPEC)
