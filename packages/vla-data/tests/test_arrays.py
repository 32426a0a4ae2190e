"""The arrays format: written as recorded, read bit-equal, and wrong input."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from vla_core.errors import ConfigError, UserError
from vla_core.history import History
from vla_data import ArraysConfig, ArraysSource
from vla_data._arrays_writer import ArraysWriter

FRAMES = (23, 9, 31)
CAMERAS = ("left", "right")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory, toy_spec, toy_demonstrations):
    root = tmp_path_factory.mktemp("arrays") / "toy"
    writer = ArraysWriter(root, toy_spec, toy_demonstrations[0], "toy")
    for demonstration in toy_demonstrations:
        writer.add(demonstration)
    writer.close({"seed": 0})
    return root, toy_demonstrations


def test_every_frame_is_what_was_recorded(arrays):
    root, demonstrations = arrays
    source = pickle.loads(pickle.dumps(ArraysSource(ArraysConfig(str(root)), horizon=6)))
    assert len(source) == sum(FRAMES)
    index = 0
    for e, demonstration in enumerate(demonstrations):
        for i in range(FRAMES[e]):
            sample, columns = source[index], demonstration.columns
            assert source.episode(index) == e
            assert sample.observation.instruction == demonstration.instruction
            assert np.array_equal(sample.observation.state, columns["observation.state"][i])
            for kind in ("images", "depth", "intrinsics", "extrinsics"):
                views = getattr(sample.observation, kind)
                assert list(views) == list(CAMERAS)
                for name in CAMERAS:
                    assert np.array_equal(views[name], columns[f"observation.{kind}.{name}"][i])
            left = min(6, FRAMES[e] - i)
            assert np.array_equal(sample.actions[:left], columns["action"][i : i + left])
            assert sample.action_mask[:left].all()
            assert not sample.action_mask[left:].any()
            index += 1


def test_a_column_is_a_plain_npy_file(arrays):
    root, demonstrations = arrays
    column = np.load(root / "action.npy")
    assert np.array_equal(column, np.concatenate([d.columns["action"] for d in demonstrations]))


def test_chosen_episodes_and_cameras(arrays):
    root, demonstrations = arrays
    config = ArraysConfig(str(root), cameras=("right",), depth=False)
    source = ArraysSource(config, horizon=2, episodes=[2, 0])
    assert ArraysSource.list_episodes(config) == [0, 1, 2]
    assert len(source) == FRAMES[2] + FRAMES[0]
    first = source[0].observation
    right = demonstrations[2].columns["observation.images.right"][0]
    assert list(first.images) == ["right"]
    assert np.array_equal(first.images["right"], right)
    assert first.depth is None
    kept = np.concatenate([demonstrations[e].columns["action"] for e in (2, 0)])
    assert np.allclose(source.spec.statistics["action"].mean, kept.mean(0), atol=1e-6)


def test_earlier_moments_are_what_a_robot_that_remembers_shows(arrays):
    root, _ = arrays
    deltas = (-3, -1, 0)
    plain = ArraysSource(ArraysConfig(str(root)), 4, episodes=[2, 0])
    source = ArraysSource(ArraysConfig(str(root), observation_delta_indices=deltas), 4, episodes=[2, 0])
    history, episode, states = History(deltas), None, []
    for i in range(len(plain)):
        if plain.episode(i) != episode:
            history.reset()
            episode = plain.episode(i)
        expected, seen = history.add(plain[i].observation), source[i].observation
        assert list(seen.images) == list(expected.images)
        for kind in ("images", "depth", "intrinsics", "extrinsics"):
            for name, value in (getattr(expected, kind) or {}).items():
                assert np.array_equal(getattr(seen, kind)[name], value)
        assert np.array_equal(seen.state, expected.state)
        assert np.array_equal(source.numeric(i)[0], expected.state)
        assert np.array_equal(source[i].actions, plain[i].actions)
        states.append(expected.state)
    assert [c.name for c in source.spec.observation.cameras] == list(expected.images)
    np.testing.assert_allclose(source.spec.statistics["state"].max, np.max(states, 0), atol=1e-6)
    with pytest.raises(ConfigError, match="observation_delta_indices: must be ascending"):
        ArraysSource(ArraysConfig(str(root), observation_delta_indices=(-1,)), 4)


def test_wrong_input(arrays, tmp_path):
    root, _ = arrays
    with pytest.raises(UserError, match="no arrays dataset"):
        ArraysSource(ArraysConfig(str(tmp_path)), 2)
    with pytest.raises(ConfigError, match="did you mean 'left'"):
        ArraysSource(ArraysConfig(str(root), cameras=("lef",)), 2)
    with pytest.raises(ConfigError, match="no episode 7"):
        ArraysSource(ArraysConfig(str(root)), 2, episodes=[7])


def test_a_truncated_file_is_named(arrays, tmp_path):
    root, _ = arrays
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in root.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    column = broken / "observation.images.left.npy"
    column.write_bytes(column.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"images\.left\.npy: not a whole array"):
        ArraysSource(ArraysConfig(str(broken)), 2)
