"""What foreign data sets get wrong: each is one line that names the place, before a picture is trusted."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vla_core.errors import UserError
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.formats import scan
from vla_data.formats.scan import VideoFacts

ONE = ("observation.images.top",)


def _says(root, pattern, **options) -> str:
    with pytest.raises(UserError, match=pattern) as error:
        LeRobotSource(LeRobotConfig(str(root), **options), 1)
    assert "\n" not in str(error.value)
    return str(error.value)


def _info(root, **changes) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, **changes}))


def _video(root):
    return sorted(root.rglob("*.mp4"))[-1]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_pictures_that_come_late(write_lerobot, tmp_path, version):
    root = write_lerobot(tmp_path / "late", version=version, lengths=(6, 5), cameras=ONE, shift=1)
    text = _says(root, "first frame stands at 0.0500 s instead of 0.*1 frames late")
    assert ".mp4" in text


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_pictures_in_time_are_accepted(write_lerobot, tmp_path, shift):
    root = write_lerobot(tmp_path / "fine", version="v2.1", lengths=(6,), cameras=ONE, shift=shift)
    assert len(LeRobotSource(LeRobotConfig(str(root)), 1)) == 6


def test_pictures_that_were_lost(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "lost", lengths=(6, 5), cameras=ONE, drop=2)
    text = "lacks 1 of the 5 frames of episode 1 .*it holds 10 frames, the metadata lists 11"
    _says(root, text)
    # The lost frame may be one of episode 0: then every later picture of the file is wrong.
    _says(root, text, episodes=(0,))


@pytest.mark.parametrize(("fps", "says"), [(30, "come at 20 Hz"), (10, "come at 20 Hz"), (19.9, "multiple")])
def test_another_rate(write_lerobot, tmp_path, fps, says):
    root = write_lerobot(tmp_path / "rate", version="v2.1", lengths=(80,), cameras=ONE, size=32)
    _info(root, fps=fps)
    _says(root, says)


def test_stamps_of_an_episode_that_do_not_span_it(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "span", lengths=(6, 5), cameras=ONE)
    file = next(root.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(file)
    name = f"videos/{ONE[0]}/to_timestamp"
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, [np.add(table[name].to_numpy(), [0, 0.2])]), file)
    _says(root, r"episode 1 has 5 frames.*\(0\.3 s, 0\.75 s\) span 9\.0")


def test_a_pointer_instead_of_a_file(write_lerobot, tmp_path):
    for kind in ("*.mp4", "data/*/*.parquet"):
        root = write_lerobot(tmp_path / kind[:4].strip("*."), version="v2.1", lengths=(3,), cameras=ONE)
        file = next(root.rglob(kind.rpartition("/")[2]) if "/" not in kind else root.glob(kind))
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        text = _says(root, "a Git LFS pointer, not data; run git lfs pull")
        assert str(file) in text


def test_a_cut_video(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "cut", version="v2.1", lengths=(12,), cameras=ONE)
    file = _video(root)
    file.write_bytes(file.read_bytes()[:2000])
    assert str(file) in _says(root, "not a readable video")


def test_videos_of_two_sizes(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "a", version="v2.1", lengths=(3, 3), cameras=ONE)
    other = write_lerobot(tmp_path / "b", version="v2.1", lengths=(3, 3), cameras=ONE, size=32)
    shutil.copy(_video(other), _video(root))
    _says(root, "pictures of 64 x 64 .* and 32 x 32")
    assert len(LeRobotSource(LeRobotConfig(str(root), episodes=(0,)), 1)) == 3


def test_a_file_is_scanned_again_when_it_changes(write_lerobot, tmp_path, monkeypatch):
    root = write_lerobot(tmp_path / "again", version="v2.1", lengths=(3, 3), cameras=ONE)
    scanned = []
    true = scan.scan
    monkeypatch.setattr(scan, "scan", lambda path: scanned.append(path) or true(path))
    for _ in range(2):
        LeRobotSource(LeRobotConfig(str(root)), 1)
    assert len(scanned) == 2
    _video(root).write_bytes(b"nothing")
    _says(root, "not a readable video")
    assert len(scanned) == 3


def test_runs_give_the_stamps_back():
    rng = np.random.default_rng(0)
    for stamps in (
        np.arange(0, 900, 30),
        np.cumsum(rng.integers(1, 3, 200)),
        np.array([5]),
        np.array([], int),
    ):
        runs = scan._runs(stamps)
        assert np.array_equal(VideoFacts(stamps=runs).seconds(), stamps)


def _column(root, key, values, file=-1) -> None:
    path = sorted(root.glob("data/*/*.parquet"))[file]
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(key), key, pa.array(values)), path)


FOUR = [1.0] * 4
VECTORS = {
    "null": ([FOUR, None, FOUR], "episode 1, frame 1: '{key}' is null"),
    "holes": ([FOUR, [1.0, None, 1.0, 1.0], FOUR], r"episode 1, frame 1: '{key}' holds null \(dim 1\)"),
    "ragged": ([FOUR, FOUR, [1.0] * 3], "episode 1, frame 2: '{key}' has 3 dims, and 4 in the first"),
    "matrix": ([[[1.0] * 4] * 2] * 3, "frame 0: '{key}' is a matrix"),
    "text": (["a", "b", "c"], "frame 0: '{key}' holds string, not numbers"),
    "narrow": ([[1.0] * 3] * 3, "frame 0: '{key}' has 3 dims, and [45] by meta/info.json"),
    "nan": ([FOUR, [float("nan")] * 4, FOUR], "episode 1, frame 1: '{key}' holds NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("key", ["action", "observation.state"])
def test_a_vector_that_is_none(write_lerobot, tmp_path, kind, key):
    root = write_lerobot(tmp_path / "vector", version="v2.1", lengths=(2, 3), cameras=ONE)
    values, says = VECTORS[kind]
    wide = 4 if key == "action" else 5
    if wide == 5 and kind not in ("text", "matrix"):
        values = [v if v is None else [*v, 1.0] for v in values]
        says = says.replace("has 3 dims, and 4", "has 4 dims, and 5").replace(
            "has 3 dims, and [", "has 4 dims, and ["
        )
    if kind in ("text", "matrix", "narrow", "ragged"):
        _column(root, key, values)
        if kind != "ragged":
            _says(root, says.format(key=key), episodes=(1,))
            return
    _column(root, key, values)
    _says(root, says.format(key=key), episodes=None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"features": None}, "'features' must name what is recorded, is null"),
        ({"features": {}}, "'features' must name what is recorded"),
        ({"features": []}, "'features' must name what is recorded, is a list"),
        ({"features": {"action": {"dtype": "float32", "shape": [4]}}}, "no cameras"),
        (
            {"features": {"action": {"dtype": "float32", "shape": "4"}}},
            "shape of feature 'action' must be a list",
        ),
        ({"features": {"image": {"dtype": "video", "shape": [1, 1, 3]}}}, "no feature 'action'"),
        ({"fps": 0}, "fps must be a number above 0, is 0"),
        ({"fps": True}, "fps must be a number above 0"),
        ({"codebase_version": None}, "LeRobot None is not known"),
    ],
)
def test_an_info_that_says_too_little(write_lerobot, tmp_path, changes, says):
    root = write_lerobot(tmp_path / "info", version="v2.1", lengths=(3,), cameras=ONE)
    _info(root, **changes)
    assert "info.json" in _says(root, says)


def test_an_info_without_a_rate(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "fps", version="v2.1", lengths=(3,), cameras=ONE)
    info = json.loads((root / "meta/info.json").read_text())
    del info["fps"]
    (root / "meta/info.json").write_text(json.dumps(info))
    _says(root, r"info\.json: .*no 'fps'")


def test_an_action_of_two_dimensions(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "two", version="v2.1", lengths=(3,), cameras=ONE)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["shape"] = [16, 4]
    _info(root, features=info["features"])
    _says(root, r"'action' has shape \[16, 4\]; a vector a frame is needed")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(
    ("task", "says"), [(9, "task_index is 9"), (None, "task_index is None"), (1, "task_index is 1")]
)
def test_a_frame_without_a_task(write_lerobot, tmp_path, version, task, says):
    root = write_lerobot(tmp_path / "task", version=version, lengths=(3,), cameras=ONE)
    _column(root, "task_index", pa.array([0, task, 0], pa.int64()))
    if version == "v3.0":
        table = pa.table({"task_index": [0, 1], "task": ["push it", None]})
        pq.write_table(table, root / "meta/tasks.parquet")
    else:
        (root / "meta/tasks.jsonl").write_text(
            '{"task_index": 0, "task": "push it"}\n{"task_index": 1, "task": null}\n'
        )
    _says(root, f"episode 0, frame 1: no instruction .{says}, meta/tasks.*has 2 tasks.; set 'instruction'")
    source = LeRobotSource(LeRobotConfig(str(root), instruction="push"), 1)
    assert source[1].observation.instruction == "push"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"length": 3}', r"episodes\.jsonl:1: 'episode_index' must be a whole number"),
        ('{"episode_index": 0, "length": "3"}', "'length' must be a whole number"),
        ('{"episode_index": 0, "length": 0}', "episode 0 has no frames"),
        (
            '{"episode_index": 0, "length": 3}\n{"episode_index": 0, "length": 3}',
            "jsonl:2: episode 0 is listed",
        ),
        ("[1]", r"episodes\.jsonl:1: must be a mapping"),
        ("{", r"episodes\.jsonl:1: not JSON"),
        ("", "no episodes"),
    ],
)
def test_lists_of_episodes_that_are_none(write_lerobot, tmp_path, line, says):
    root = write_lerobot(tmp_path / "list", version="v2.1", lengths=(3,), cameras=ONE)
    (root / "meta/episodes.jsonl").write_text(line)
    _says(root, says)


def test_hybrids_of_v3(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "hybrid", lengths=(3, 4))
    file = next(root.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(file)
    wrist = [c for c in table.column_names if "wrist" in c]
    pq.write_table(table.drop_columns(wrist), file)
    _says(root, "camera 'wrist' is declared .*meta/episodes has no columns of it; leave it out")
    assert len(LeRobotSource(LeRobotConfig(str(root), cameras=("top",)), 1)) == 7
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), file)
    _says(root, "episode 0 is listed 2 times")
    pq.write_table(table.drop_columns(["episode_index"]), file)
    _says(root, "has no column 'episode_index'")
    pq.write_table(table, file)
    data = next(root.glob("data/*/*.parquet"))
    whole = pq.read_table(data)
    pq.write_table(whole.slice(0, 5), data)
    _says(root, "the data files lack frames .*has no index 5 of episode 1")
    pq.write_table(whole.drop_columns(["index"]), data)
    _says(root, "has no column 'index'")
