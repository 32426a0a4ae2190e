from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vla_core import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec, SpecMismatch
from vla_core.specs import check_action, check_observation
from vla_core.stats import NormStats, VectorStats
from vla_core.testing import make_spec

NAMES = st.text(min_size=1, max_size=8)
GROUPS = st.lists(
    st.builds(
        GroupSpec,
        name=NAMES,
        dim=st.integers(1, 9),
        unit=st.sampled_from(["m", "rad", "1"]),
        representation=st.sampled_from(["absolute", "delta", "relative"]),
        rotation=st.sampled_from(["none", "axis_angle"]),
        gripper=st.sampled_from(["none", "open_positive", "close_positive"]),
    ),
    max_size=4,
    unique_by=lambda group: group.name,
).map(tuple)
CAMERAS = st.lists(
    st.builds(CameraSpec, NAMES, st.integers(1, 999), st.integers(1, 999)),
    max_size=3,
    unique_by=lambda camera: camera.name,
).map(tuple)
SPECS = st.builds(
    RobotSpec,
    observation=st.builds(ObservationSpec, CAMERAS, GROUPS),
    action=st.builds(ActionSpec, GROUPS, st.integers(1, 64), st.floats(0.1, 1e4)),
    embodiment=NAMES,
)
FLOATS = st.floats(allow_nan=False, width=64)


@given(SPECS)
def test_spec_round_trip_through_json(spec):
    assert RobotSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(
    hnp.arrays(np.float64, st.tuples(st.just(6), st.integers(1, 5)), elements=FLOATS), st.integers(0, 2**40)
)
def test_statistics_round_trip_through_json_exactly(values, count):
    stats = NormStats({"action": VectorStats(*values, count)})
    again = NormStats.from_dict(json.loads(json.dumps(stats.to_dict())))
    assert again == stats
    assert again["action"].q99.tobytes() == values[5].tobytes()
    assert again["action"].count == count


def test_statistics_file(tmp_path):
    stats = make_spec().statistics
    stats.save(tmp_path / "s.json")
    assert NormStats.load(tmp_path / "s.json") == stats
    assert stats != NormStats({"state": stats["state"]})


def test_statistics_of_rows():
    rows = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    stats = VectorStats.from_rows(rows)
    assert stats.count == 1000
    assert stats.dim == 2
    np.testing.assert_allclose(stats.mean, rows.astype(np.float64).mean(0))
    np.testing.assert_allclose(stats.std, rows.astype(np.float64).std(0))
    assert (stats.min <= stats.q01).all()
    assert (stats.q01 < stats.q99).all()
    assert (stats.q99 <= stats.max).all()
    assert ((rows < stats.q01).mean(0) <= 0.0101).all()


def test_bad_statistics():
    with pytest.raises(ValueError, match=r"rows \[N > 0, D\], got shape \(0, 3\)"):
        VectorStats.from_rows(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="'std' have shape"):
        VectorStats(np.zeros(2), np.zeros(3), *[np.zeros(2)] * 4, 1)
    with pytest.raises(ValueError, match=r"no statistics for 'action'; there are some for \['state'\]"):
        NormStats({"state": make_spec().statistics["state"]})["action"]


def test_slices():
    spec = make_spec()
    assert spec.action.slices() == {
        "position": slice(0, 3),
        "rotation": slice(3, 6),
        "gripper": slice(6, 7),
    }
    assert spec.observation.state_slices() == spec.action.slices()
    assert (spec.action.dim, spec.observation.state_dim) == (7, 7)


WHO = ("dataset", "checkpoint")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda o: replace(o, cameras=o.cameras[:1]),
            "observation.cameras: dataset has 2 entries ['camera_0', 'camera_1'], "
            "checkpoint has 1 ['camera_0']",
        ),
        (
            lambda o: replace(o, cameras=o.cameras[::-1]),
            "observation.cameras[camera_0].name: dataset has 'camera_0', checkpoint has 'camera_1'",
        ),
        (
            lambda o: replace(o, cameras=(o.cameras[0], replace(o.cameras[1], width=64))),
            "observation.cameras[camera_1].width: dataset has 32, checkpoint has 64",
        ),
        (
            lambda o: replace(o, state=(o.state[0], replace(o.state[1], unit="deg"), o.state[2])),
            "observation.state[rotation].unit: dataset has 'rad', checkpoint has 'deg'",
        ),
        (
            lambda o: replace(o, state=()),
            "observation.state: dataset has 3 entries ['position', 'rotation', 'gripper'], "
            "checkpoint has 0 []",
        ),
    ],
)
def test_observation_mismatch_names_the_field(change, message):
    spec = make_spec().observation
    check_observation(spec, make_spec().observation, WHO)
    with pytest.raises(SpecMismatch) as error:
        check_observation(spec, change(spec), WHO)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 4, "action.groups[gripper].dim: dataset has 1, checkpoint has 4"),
        ("gripper", "close_positive", "'open_positive', checkpoint has 'close_positive'"),
        ("representation", "delta", "representation: dataset has 'absolute', checkpoint has 'delta'"),
        ("rotation", "rotation_6d", "rotation: dataset has 'none', checkpoint has 'rotation_6d'"),
    ],
)
def test_action_group_mismatch_names_the_field(field, value, message):
    spec = make_spec().action
    other = replace(spec, groups=(*spec.groups[:2], replace(spec.groups[2], **{field: value})))
    with pytest.raises(SpecMismatch, match=r"^action\.groups\[gripper\]\.") as error:
        check_action(spec, other, WHO)
    assert message in str(error.value)


def test_action_rate_and_horizon():
    spec = make_spec().action
    with pytest.raises(SpecMismatch, match=r"^action.control_hz: dataset has 10.0, checkpoint has 20.0$"):
        check_action(spec, replace(spec, control_hz=20.0), WHO)
    longer = replace(spec, horizon=8)
    with pytest.raises(SpecMismatch, match=r"^action.horizon: dataset has 4, checkpoint has 8$"):
        check_action(spec, longer, WHO)
    check_action(spec, longer, WHO, horizon=False)


def test_a_name_that_occurs_twice_is_refused_with_both_places():
    front, arm = CameraSpec("front", 8, 8), GroupSpec("arm", 2, "m")
    with pytest.raises(SpecMismatch, match=r"camera 'front' is named twice: .*cameras\[0\] and .*\[2\]"):
        ObservationSpec((front, CameraSpec("wrist", 8, 8), front))
    with pytest.raises(SpecMismatch, match=r"group 'arm' is named twice: observation.state\[0\] and"):
        ObservationSpec((front,), (arm, arm))
    with pytest.raises(SpecMismatch, match=r"group 'arm' is named twice: action.groups\[0\] and"):
        ActionSpec((arm, arm), 4, 10.0)
