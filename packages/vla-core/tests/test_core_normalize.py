from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vla_core import ActionSpec, ConfigError, GroupSpec, NormStats, Pipeline, VectorStats
from vla_core.testing import make_observation, make_spec

DIM = 3
VALUES = st.floats(-100, 100, width=32)
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(2, 30), st.just(DIM)), elements=VALUES)


def _spec(rows, dim=DIM):
    stats = VectorStats.from_rows(rows)
    spec = make_spec(n_cameras=1)
    return replace(
        spec,
        action=ActionSpec((GroupSpec("arm", dim - 1, "m"), GroupSpec("hand", 1, "1")), 4, 10.0),
        observation=replace(spec.observation, state=(GroupSpec("joints", dim, "rad"),)),
        statistics=NormStats({"action": stats, "state": stats}),
    )


def _pipeline(rows, **config):
    return Pipeline([{"name": "normalize", **config}], _spec(rows))


@pytest.mark.parametrize("mode", ["q99", "min_max", "mean_std", "none"])
@given(rows=ROWS)
def test_inverse_gives_the_actions_back(mode, rows):
    pipeline = _pipeline(rows, action=mode)
    back = pipeline.inverse(pipeline.steps[0].actions(rows, None), None)
    constant = np.ptp(rows.astype(np.float64), axis=0) < 1e-5
    # float32 keeps about seven digits of the normalised value, which q99 lets grow outside [-1, 1].
    span = np.maximum(np.abs(rows).max(0), 1.0)
    np.testing.assert_allclose(
        back[:, ~constant] / span[~constant], rows[:, ~constant] / span[~constant], atol=1e-5
    )
    np.testing.assert_allclose(back[:, constant], rows[:, constant], atol=2e-5)


@given(rows=ROWS)
def test_ranges(rows):
    varies = np.ptp(rows, axis=0) > 1e-3
    y = _pipeline(rows, action="min_max").steps[0].actions(rows, None)[:, varies]
    if y.size:
        np.testing.assert_allclose(y.min(0), -1, atol=1e-5)
        np.testing.assert_allclose(y.max(0), 1, atol=1e-5)
    y = _pipeline(rows, action="mean_std").steps[0].actions(rows, None)[:, varies]
    if y.size:
        np.testing.assert_allclose(y.astype(np.float64).mean(0), 0, atol=1e-2)
        np.testing.assert_allclose(y.astype(np.float64).std(0), 1, atol=1e-2)


def test_q99_maps_the_quantiles_to_the_unit_range():
    rows = np.random.default_rng(0).normal(size=(1000, DIM)).astype(np.float32)
    pipeline = _pipeline(rows)
    stats = pipeline.statistics["action"]
    edges = np.stack([stats.q01, stats.q99]).astype(np.float32)
    np.testing.assert_allclose(pipeline.steps[0].actions(edges, None), [[-1] * DIM, [1] * DIM], atol=1e-5)
    assert (np.abs(pipeline.steps[0].actions(rows, None)) > 1).any()


@pytest.mark.parametrize("mode", ["q99", "min_max", "mean_std"])
@given(x=hnp.arrays(np.float32, (4, DIM), elements=st.floats(-1e4, 1e4, width=32)), clip=st.floats(0.5, 3))
def test_clip_is_the_nearest_point_of_the_range(mode, x, clip):
    rows = np.random.default_rng(0).uniform(-5, 5, (100, DIM)).astype(np.float32)
    free, clipped = _pipeline(rows, action=mode), _pipeline(rows, action=mode, clip=clip)
    y = clipped.steps[0].actions(x, None)
    np.testing.assert_array_equal(
        y, np.clip(free.steps[0].actions(x, None), -np.float32(clip), np.float32(clip))
    )
    low, high = (clipped.inverse(np.full((1, DIM), s * clip, np.float32), None) for s in (-1, 1))
    np.testing.assert_allclose(clipped.inverse(y, None), np.clip(x, low, high), atol=1e-4)


def test_clip_leaves_groups_without_a_mode_alone():
    rows = np.random.default_rng(0).uniform(-5, 5, (100, DIM)).astype(np.float32)
    pipeline = _pipeline(rows, groups={"arm": "none"}, clip=1.0)
    x = np.array([[40.0, -50.0, 60.0]], np.float32)
    np.testing.assert_array_equal(pipeline.steps[0].actions(x, None), [[40.0, -50.0, 1.0]])


def test_constant_dims_become_zero_and_come_back():
    rows = np.random.default_rng(0).uniform(-1, 1, (50, DIM)).astype(np.float32)
    rows[:, 1] = 0.1
    for mode in ("q99", "min_max", "mean_std"):
        pipeline = _pipeline(rows, action=mode)
        y = pipeline.steps[0].actions(rows, None)
        assert (y[:, 1] == 0).all()
        noisy = y + np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
        np.testing.assert_allclose(pipeline.inverse(noisy, None)[:, 1], 0.1, atol=1e-7)


def test_q99_of_a_gripper_that_rarely_moves_uses_the_full_range():
    rows = np.zeros((1000, DIM), np.float32)
    rows[:, :2] = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    rows[3, 2] = 1.0
    y = _pipeline(rows).steps[0].actions(rows, None)
    assert sorted(set(y[:, 2].tolist())) == [-1.0, 1.0]


def test_binary():
    rows = np.random.default_rng(0).uniform(-1, 1, (50, DIM)).astype(np.float32)
    rows[:, 2] = np.where(rows[:, 2] > 0, 0.04, -0.02)
    pipeline = _pipeline(rows, groups={"hand": "binary"}, clip=0.5)
    y = pipeline.steps[0].actions(rows, None)
    np.testing.assert_array_equal(y[:, 2], rows[:, 2] > 0)
    np.testing.assert_array_equal(pipeline.inverse(y, None)[:, 2], rows[:, 2])
    predicted = np.array([[0, 0, 0.51], [0, 0, 0.49], [0, 0, -7]], np.float32)
    np.testing.assert_allclose(pipeline.inverse(predicted, None)[:, 2], [0.04, -0.02, -0.02])


def test_state_has_its_own_mode():
    rows = np.random.default_rng(0).uniform(-5, 5, (100, DIM)).astype(np.float32)
    pipeline = _pipeline(rows, state="min_max", action="none")
    observation = replace(make_observation(pipeline.input_spec), state=rows[0])
    seen = pipeline.observe(observation).state
    assert seen.dtype == np.float32
    assert (np.abs(seen) <= 1).all()
    np.testing.assert_array_equal(pipeline.steps[0].actions(rows, None), rows)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"groups": {"hnad": "binary"}}, "no group 'hnad' (did you mean 'hand'?)"),
        ({"groups": {"hand": "binray"}}, "group 'hand' has mode 'binray' (did you mean 'binary'?)"),
        ({"clip": -1}, "must be >= 0, got -1.0"),
        ({"action": "q98"}, "framework.transforms.0.action': no 'q98' here (did you mean 'q99'?)"),
    ],
)
def test_mistakes(node, message):
    with pytest.raises(ConfigError) as error:
        _pipeline(np.zeros((2, DIM)), **node)
    assert message in str(error.value)


def test_statistics_of_another_robot():
    spec = replace(_spec(np.zeros((2, DIM))), statistics=make_spec().statistics)
    with pytest.raises(ConfigError, match="statistics of 'action' have 7 dims, the spec has 3"):
        Pipeline([{"name": "normalize"}], spec)


def _chunks(rng, n=40, horizon=4):
    """Relative actions that spread with the time from now; some chunks end early, none is whole."""
    grows = np.linspace(1, 3, horizon)[:, None] * np.array([1.0, 10.0, 1.0])
    for i in range(n):
        mask = np.zeros((horizon, DIM), bool)
        mask[: 1 + i % 3] = True
        yield None, np.where(mask, rng.standard_normal((horizon, DIM)) * grows, 0).astype(np.float32), mask


def test_steps_have_statistics_of_their_own():
    found = list(_chunks(np.random.default_rng(0)))
    spec = _spec(np.ones((2, DIM)))
    spec = replace(spec, observation=replace(spec.observation, state=()))
    node = {"name": "normalize", "action": "min_max", "by_step": ["arm"]}
    pipeline = Pipeline([node], spec, rows=lambda: iter(found))
    targets = [pipeline.targets(*row)[0] for row in found]
    for step in range(3):
        raw = np.array([chunk[step] for _, chunk, mask in found if mask[step].all()])
        seen = np.array([t[step] for t, row in zip(targets, found, strict=True) if row[2][step].all()])
        np.testing.assert_allclose(seen[:, :2].min(0), -1, atol=1e-6)
        np.testing.assert_allclose(seen[:, :2].max(0), 1, atol=1e-6)
        every = np.concatenate([chunk[mask.all(1), 2] for _, chunk, mask in found])
        low, high = every.min(), every.max()  # the hand is not named: all steps together
        np.testing.assert_allclose(seen[:, 2], 2 * (raw[:, 2] - low) / (high - low) - 1, atol=1e-5)
    whole = np.random.default_rng(1).standard_normal((4, DIM)).astype(np.float32)
    for length in (4, 2):  # the whole chunk of an answer, and what is left of one
        part = whole[:length]
        np.testing.assert_allclose(pipeline.inverse(pipeline.actions(part, None), None), part, atol=1e-4)
    # Loaded with a checkpoint's statistics it is the same.
    kept = NormStats.from_dict(pipeline.statistics.to_dict())
    again = Pipeline(pipeline.nodes, spec, statistics=kept)
    np.testing.assert_array_equal(again.actions(whole, None), pipeline.actions(whole, None))


@pytest.mark.parametrize(
    ("names", "words"),
    [(["arms"], r"by_step: no action group 'arms'.*'arm'"), (["arm"], "has 'by_step', so its statistics")],
)
def test_by_step_wants_groups_and_data(names, words):
    rows = (lambda: _chunks(np.random.default_rng(0))) if names == ["arms"] else None
    with pytest.raises(ConfigError, match=words):
        Pipeline([{"name": "normalize", "by_step": names}], _spec(np.ones((2, DIM))), rows=rows)
