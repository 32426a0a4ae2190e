"""Damaged files: one line with data set, episode, frame and file, the same from a worker process."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil

import pytest
from vla_core.errors import UserError
from vla_data import ArraysConfig, ArraysSource, LeRobotConfig, LeRobotSource
from vla_data._arrays_writer import ArraysWriter
from vla_data.errors import BadDataError


def _message(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def _read_all(source) -> None:
    for i in range(len(source)):
        source[i]


def _damage(file, start, stop) -> None:
    data = bytearray(file.read_bytes())
    first, last = int(len(data) * start), int(len(data) * stop)
    data[first:last] = bytes(255 for _ in range(last - first))
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_a_damaged_video_names_the_place(write_lerobot, tmp_path, codec):
    root = write_lerobot(tmp_path / "damaged", codec=codec, lengths=(30, 30), size=192, gop=30)
    video = root / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    source = LeRobotSource(LeRobotConfig(str(root)), 2)
    _damage(video, 0.02, 0.9)
    with pytest.raises(BadDataError) as error:
        _read_all(source)
    text = _message(error)
    assert text.startswith(f"{root}: episode ")
    assert str(video) in text
    assert ", frame " in text
    again = pickle.loads(pickle.dumps(error.value))
    assert type(again) is BadDataError
    assert str(again) == text


READ = """
try:
    [source[i] for i in range(len(source))]
except Exception as error:
    out.put(error)
else:
    out.put(None)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_error_comes_whole_from_a_worker(write_lerobot, tmp_path, method):
    root = write_lerobot(tmp_path / "cut", lengths=(30,), size=192)
    video = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    source = LeRobotSource(LeRobotConfig(str(root)), 2)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    context = multiprocessing.get_context(method)
    out = context.Queue()
    worker = context.Process(target=exec, args=(READ, {"source": source, "out": out}))
    worker.start()
    error = out.get(timeout=60)
    worker.join(timeout=30)
    assert isinstance(error, UserError)
    assert f"{root}: episode 0, frame 0: {video}: not a readable video" in str(error)


def test_damaged_depth_names_the_place(toy, tmp_path):
    root = tmp_path / "depth"
    shutil.copytree(toy.path, root)
    source = LeRobotSource(LeRobotConfig(str(root)), 2)
    table = next(root.glob("data/*/*.parquet"))
    _damage(table, 0.01, 0.95)
    with pytest.raises(BadDataError) as error:
        _read_all(source)
    assert f"{root}: episode 0, frame 0: {table}: " in _message(error)
    table.unlink()
    with pytest.raises(BadDataError, match="episode 0, frame 0") as error:
        LeRobotSource.__getitem__(pickle.loads(pickle.dumps(source)), 0)
    _message(error)


@pytest.mark.parametrize("fps", [0, -1, None, "fast"])
def test_a_rate_that_is_none(write_lerobot, tmp_path, fps):
    root = write_lerobot(tmp_path / "rate", lengths=(3,), cameras=("observation.images.top",), info={"x": 1})
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "fps": fps}))
    with pytest.raises(UserError, match=r"info\.json") as error:
        LeRobotSource(LeRobotConfig(str(root)), 1)
    _message(error)


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"codebase_version": "v3.0", "fps": 10}'])
def test_an_info_that_is_none(write_lerobot, tmp_path, content):
    root = tmp_path / "info"
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(content)
    with pytest.raises(UserError, match=r"info\.json: not the info of a LeRobot dataset") as error:
        LeRobotSource(LeRobotConfig(str(root)), 1)
    _message(error)


def test_two_cameras_of_one_name_in_the_features(write_lerobot, tmp_path):
    root = write_lerobot(
        tmp_path / "twice", lengths=(3,), cameras=("observation.images.top", "observation.top")
    )
    with pytest.raises(UserError, match=r"info\.json: two cameras are named 'top'") as error:
        LeRobotSource(LeRobotConfig(str(root)), 1)
    assert "observation.images.top and observation.top" in _message(error)


@pytest.mark.parametrize(
    ("above", "key", "what"),
    [
        ("observation", "cameras", "cameras"),
        ("observation", "state", "state"),
        ("action", "groups", "action"),
    ],
)
def test_two_of_one_name_in_a_spec_file(
    write_lerobot, toy_spec, toy_demonstrations, tmp_path, above, key, what
):
    node = toy_spec.to_dict()
    node[above][key] = [node[above][key][0], node[above][key][0]]
    root = write_lerobot(tmp_path / "lerobot", lengths=(3,))
    (root / "meta/vla_spec.json").write_text(json.dumps(node))
    with pytest.raises(
        UserError, match=rf"vla_spec\.json: two {what}.*{above}\.{key}\.0 and {above}\.{key}\.1"
    ):
        LeRobotSource(LeRobotConfig(str(root)), 1)
    writer = ArraysWriter(tmp_path / "arrays", toy_spec, toy_demonstrations[0], "toy")
    writer.add(toy_demonstrations[1])
    writer.close({})
    meta = json.loads((tmp_path / "arrays/arrays.json").read_text())
    (tmp_path / "arrays/arrays.json").write_text(json.dumps({**meta, "spec": node}))
    with pytest.raises(UserError, match=rf"arrays\.json: two {what}.*{above}\.{key}\.1"):
        ArraysSource(ArraysConfig(str(tmp_path / "arrays")), 1)
