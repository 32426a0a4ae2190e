from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vla_core import ConfigError, Pipeline, VectorStats, rotations
from vla_core.specs import GroupSpec
from vla_core.testing import make_sample, make_spec

SPEC = make_spec(horizon=4)
# Multiples of 1/64 add and subtract exactly in float32, so the inverse must be exact too.
EXACT = st.integers(-64, 64).map(lambda i: i / 64)
ACTIONS = hnp.arrays(np.float32, (4, 7), elements=EXACT)
STATE = hnp.arrays(np.float32, 7, elements=EXACT)
FREE = st.floats(-3, 3, width=32)


def _relative(mode, groups=("position",)):
    return {"name": "relative_actions", "mode": mode, "groups": {g: g for g in groups}}


@given(actions=ACTIONS, state=STATE)
def test_relative_is_the_offset_from_the_state(actions, state):
    pipeline = Pipeline([_relative("relative", ("position", "gripper"))], SPEC)
    out = pipeline.steps[0].actions(actions, state)
    expected = actions - state
    expected[:, 3:6] = actions[:, 3:6]
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(pipeline.inverse(out, state), actions)


@given(actions=ACTIONS, state=STATE)
def test_delta_is_the_step_from_the_previous_target(actions, state):
    pipeline = Pipeline([_relative("delta")], SPEC)
    out = pipeline.steps[0].actions(actions, state)
    np.testing.assert_array_equal(out[0, :3], actions[0, :3] - state[:3])
    np.testing.assert_array_equal(out[1:, :3], actions[1:, :3] - actions[:-1, :3])
    np.testing.assert_array_equal(out[:, 3:], actions[:, 3:])
    np.testing.assert_array_equal(pipeline.inverse(out, state), actions)


def test_the_output_spec_says_so():
    for mode in ("relative", "delta"):
        groups = Pipeline([_relative(mode)], SPEC).output_spec.action.groups
        assert [g.representation for g in groups] == [mode, "absolute", "absolute"]


@pytest.mark.parametrize("kind", ["euler_xyz", "quaternion_xyzw", "axis_angle", "rotation_6d"])
@given(actions=hnp.arrays(np.float32, (4, 7), elements=FREE), state=hnp.arrays(np.float32, 7, elements=FREE))
def test_converted_rotations_are_the_same_rotation(kind, actions, state):
    pipeline = Pipeline([{"name": "convert_rotation", "groups": ["rotation"], "to": kind}], SPEC)
    out = pipeline.steps[0].actions(actions, state)
    width = rotations.DIMS[kind]
    assert out.shape == (4, 4 + width)
    assert out.dtype == np.float32
    spec = pipeline.output_spec
    assert spec.action.dim == spec.observation.state_dim == 4 + width
    assert spec.action.groups[1] == replace(SPEC.action.groups[1], rotation=kind, dim=width)
    np.testing.assert_array_equal(out[:, [0, 1, 2, -1]], actions[:, [0, 1, 2, -1]])
    back = pipeline.inverse(out, state)
    matrices = (rotations.to_matrix(a[:, 3:6], "axis_angle") for a in (actions, back))
    np.testing.assert_allclose(*matrices, atol=5e-6)
    seen = pipeline.steps[0].state(state)
    np.testing.assert_allclose(
        rotations.to_matrix(seen[3:-1], kind), rotations.to_matrix(state[3:6], "axis_angle"), atol=5e-6
    )


def _frames(spec, n=30, valid=3):
    return [make_sample(spec, seed, valid) for seed in range(n)]


def _rows(samples):
    return lambda: ((s.observation.state, s.actions, s.action_mask) for s in samples)


STEPS = [
    [_relative("relative"), {"name": "normalize"}],
    [_relative("delta"), {"name": "normalize", "state": "mean_std", "action": "min_max"}],
    [
        {"name": "resize", "height": 16, "width": 24},
        {"name": "convert_rotation", "groups": ["rotation"], "to": "rotation_6d"},
        _relative("delta", ("position", "gripper")),
        {"name": "random_shift"},
        {"name": "normalize", "action": "mean_std"},
        {"name": "color_jitter"},
    ],
    [
        _relative("relative"),
        {"name": "convert_rotation", "groups": ["rotation"], "to": "quaternion_xyzw"},
        {
            "name": "normalize",
            "action": "none",
            "state": "q99",
            "groups": {"state.position": "mean_std", "action.position": "mean_std"},
        },
    ],
]


@pytest.mark.parametrize("nodes", STEPS)
@given(seed=st.integers(0, 1000))
def test_pipelines_invert(nodes, seed):
    pipeline = Pipeline(nodes, SPEC, rows=_rows(_frames(SPEC)))
    sample = make_sample(SPEC, seed)
    out = pipeline(sample, np.random.default_rng(seed))
    assert out.actions.shape == out.action_mask.shape == (4, pipeline.output_spec.action.dim)
    assert out.actions.dtype == out.observation.state.dtype == np.float32
    assert out.observation.state.shape == (pipeline.output_spec.observation.state_dim,)
    back = pipeline.inverse(out.actions, sample.observation.state)
    np.testing.assert_allclose(back, sample.actions, atol=2e-5)
    assert back.dtype == np.float32


@pytest.mark.parametrize("nodes", STEPS)
def test_saved_statistics_and_nodes_give_the_same_pipeline(nodes):
    fitted = Pipeline(nodes, SPEC, rows=_rows(_frames(SPEC)))
    again = Pipeline(fitted.nodes, SPEC, statistics=fitted.statistics)
    assert again.nodes == fitted.nodes
    assert again.statistics == fitted.statistics
    sample = make_sample(SPEC, 5)
    np.testing.assert_array_equal(again(sample).actions, fitted(sample).actions)
    np.testing.assert_array_equal(again(sample).observation.state, fitted(sample).observation.state)


def test_statistics_after_relative_actions_are_those_of_relative_actions():
    frames = _frames(SPEC)
    pipeline = Pipeline([_relative("relative"), {"name": "normalize"}], SPEC, rows=_rows(frames))
    rows = []
    for sample in frames:
        real = sample.actions[:3].copy()
        real[:, :3] -= sample.observation.state[:3]
        rows.append(real)
    assert pipeline.statistics["action"] == VectorStats.from_rows(np.concatenate(rows))
    assert pipeline.statistics["action"].count == 90
    states = np.stack([s.observation.state for s in frames])
    assert pipeline.statistics["state"] == VectorStats.from_rows(states)
    # The raw statistics stay those of the dataset.
    assert pipeline.input_spec.statistics == SPEC.statistics
    with pytest.raises(ConfigError, match="statistics must be computed from the data"):
        Pipeline([_relative("relative"), {"name": "normalize"}], SPEC)


def test_raw_statistics_serve_when_nothing_changed_before():
    def forbidden():
        raise AssertionError("rows were read")

    pipeline = Pipeline([{"name": "resize"}, {"name": "normalize"}], SPEC, rows=forbidden)
    assert pipeline.statistics == SPEC.statistics


@pytest.mark.parametrize("nodes", [[], *STEPS])
def test_masked_actions_become_zero_whatever_they_hold(nodes):
    pipeline = Pipeline(nodes, SPEC, rows=_rows(_frames(SPEC)))
    sample = make_sample(SPEC, 1, valid=2)
    out = pipeline(sample)
    assert (out.actions[2:] == 0).all()
    assert (out.action_mask[:2]).all()
    assert not out.action_mask[2:].any()
    for garbage in (0.0, np.nan, 1e30):
        actions = sample.actions.copy()
        actions[2:] = garbage
        np.testing.assert_array_equal(pipeline(replace(sample, actions=actions)).actions, out.actions)


def test_padded_quaternions_of_zeros_are_no_error():
    quaternion = GroupSpec("turn", 4, "1", rotation="quaternion_xyzw")
    spec = replace(SPEC, action=replace(SPEC.action, groups=(quaternion,)))
    node = {"name": "convert_rotation", "groups": ["turn"]}
    sample = make_sample(spec, 0, valid=2)
    actions = np.zeros((4, 4), np.float32)
    actions[:2, 3] = 1
    out = Pipeline([node], spec)(replace(sample, actions=actions))
    np.testing.assert_array_equal(out.actions[:2], [[1, 0, 0, 0, 1, 0]] * 2)
    assert not out.action_mask[2:].any()
    nothing = replace(sample, actions=actions, action_mask=np.zeros((4, 4), np.bool_))
    assert (Pipeline([node], spec)(nothing).actions == 0).all()


def test_a_step_with_a_masked_dim_is_masked_whole_when_a_rotation_changes_size():
    sample = make_sample(SPEC, 0)
    mask = sample.action_mask.copy()
    mask[1, 6] = False
    node = {"name": "convert_rotation", "groups": ["rotation"]}
    out = Pipeline([node], SPEC)(replace(sample, action_mask=mask))
    np.testing.assert_array_equal(out.action_mask.any(axis=1), [True, False, True, True])
    np.testing.assert_array_equal(out.action_mask.all(axis=1), [True, False, True, True])
    kept = Pipeline([], SPEC)(replace(sample, action_mask=mask))
    np.testing.assert_array_equal(kept.action_mask, mask)


def _group(name, **change):
    groups = tuple(replace(g, **change) if g.name == name else g for g in SPEC.action.groups)
    return replace(SPEC, action=replace(SPEC.action, groups=groups))


NORMALIZE = {"name": "normalize"}


@pytest.mark.parametrize(
    ("nodes", "spec", "message"),
    [
        ([{"name": "resise"}], SPEC, "transforms.0: no transform 'resise' (did you mean 'resize'?)"),
        ([{"height": 3}], SPEC, "transforms.0: no transform 'None'"),
        ([NORMALIZE, {"name": "resize", "hight": 3}], SPEC, "'framework.transforms.1.hight' (did you mean"),
        (
            [_relative("relative", ("positoin",))],
            SPEC,
            "transforms.0: relative_actions: no action group 'positoin'",
        ),
        ([{"name": "relative_actions", "groups": {"position": "x"}}], SPEC, "no state group 'x'"),
        ([{"name": "relative_actions", "groups": {"position": "gripper"}}], SPEC, "has 3 dims, state group"),
        ([_relative("delta")], _group("position", representation="delta"), "is already delta"),
        ([_relative("delta", ("rotation",))], SPEC, "is a rotation (axis_angle)"),
        ([{"name": "convert_rotation", "groups": ["rotatoin"]}], SPEC, "did you mean 'rotation'"),
        ([{"name": "convert_rotation", "groups": ["gripper"]}], SPEC, "'gripper' is not a rotation"),
        (
            [{"name": "convert_rotation", "groups": ["rotation"]}],
            _group("rotation", rotation="none"),
            "group 'rotation' is not a rotation (rotation none, 3 dims)",
        ),
        (
            [{"name": "convert_rotation", "groups": ["rotation"]}],
            _group("rotation", rotation="quaternion_xyzw"),
            "(rotation quaternion_xyzw, 3 dims)",
        ),
        ([NORMALIZE, _relative("delta")], SPEC, "'relative_actions' must come before 'normalize'"),
        ([NORMALIZE, NORMALIZE], SPEC, "'normalize' must come before 'normalize' (given once)"),
    ],
)
def test_mistakes(nodes, spec, message):
    with pytest.raises(ConfigError) as error:
        Pipeline(nodes, spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_relative_actions_need_a_state():
    pipeline = Pipeline([_relative("relative")], SPEC)
    with pytest.raises(ValueError, match="needs the robot's state"):
        pipeline.inverse(np.zeros((4, 7), np.float32), None)


@pytest.mark.parametrize(
    ("action", "state", "fine"),
    [("deg", "rad", False), ("mm", "m", False), ("rad", "rad", True), ("unknown", "rad", True)],
)
@pytest.mark.parametrize("step", ["relative_actions", "relative_pose"])
def test_a_difference_of_two_units(step, action, state, fine):
    def with_unit(groups, unit):
        return tuple(replace(g, unit=unit) if g.name == "position" else g for g in groups)

    spec = replace(
        SPEC,
        action=replace(SPEC.action, groups=with_unit(SPEC.action.groups, action)),
        observation=replace(SPEC.observation, state=with_unit(SPEC.observation.state, state)),
    )
    node = {"relative_pose": {"name": step, "poses": {"position": "rotation"}}}.get(
        step, _relative("relative")
    )
    if fine:
        assert Pipeline([node], spec)
        return
    with pytest.raises(ConfigError, match=f"{step}: action group 'position' is in {action} and state group"):
        Pipeline([node], spec)
