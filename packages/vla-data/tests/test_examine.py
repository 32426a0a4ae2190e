"""vla-data describe, doctor and inspect on data sets that somebody else recorded: programs on real files."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.cli import main
from vla_data.errors import BadDataError
from vla_data.robot.config import load_robot

TOP = ("observation.images.top",)


def _vectors(frames: int = 40) -> dict[str, np.ndarray]:
    """State (position, unit quaternion w first, gripper), and actions that are its changes and a command."""
    rng = np.random.default_rng(0)
    position = np.cumsum(0.05 * rng.standard_normal((frames, 3)), 0)
    turn = np.array([1, 0, 0, 0]) + 0.1 * np.cumsum(0.1 * rng.standard_normal((frames, 4)), 0)
    turn /= np.linalg.norm(turn, axis=1, keepdims=True)
    grip = (rng.random((frames, 1)) > 0.5) * 0.08
    step = np.diff(position, axis=0, append=position[-1:])
    return {
        "observation.state": np.concatenate([position, turn, grip], 1).astype(np.float32),
        "action": np.concatenate([step, np.sign(grip - 0.01)], 1).astype(np.float32),
    }


@pytest.fixture
def data(write_lerobot, tmp_path):
    return write_lerobot(
        tmp_path / "data", version="v2.1", lengths=(25, 15), cameras=TOP, size=32, columns=_vectors()
    )


def _names(root, **names) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    for key, value in names.items():
        info["features"][{"state": "observation.state"}.get(key, key)]["names"] = value
    (root / "meta/info.json").write_text(json.dumps(info))


def test_describe_tells_by_numbers(data, tmp_path, capsys):
    out = tmp_path / "new" / "robot.yaml"
    assert main(["describe", str(data), "--out", str(out)]) == 0
    assert f"datasets.train.0.robot={out}" in capsys.readouterr().out
    robot = load_robot(out)
    assert [(g.name, g.start, g.end, g.rotation, g.gripper) for g in robot.state] == [
        ("state", 0, 3, "none", "none"),
        ("rotation", 3, 7, "quaternion_wxyz", "none"),
        ("gripper", 7, 8, "none", "open_positive"),
    ]
    assert [(g.name, g.start, g.end) for g in robot.action] == [("action", 0, 3), ("gripper", 3, 4)]
    assert robot.action[0].representation == "delta"
    assert out.read_text().count("guess") > 3
    plain = LeRobotSource(LeRobotConfig(str(data)), 1)
    source = LeRobotSource(LeRobotConfig(str(data), robot=str(out)), 1)
    assert np.array_equal(source.rows("action"), plain.rows("action"))
    assert source.spec.observation.state[1].rotation == "quaternion_xyzw"
    assert main(["describe", str(data), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_describe_says_where_it_cannot_write(data, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert main(["describe", str(data), "--out", str(file / "of" / "robot.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"vla-data describe: {file / 'of'} cannot be read or written (Not a directory)\n"
    )


@pytest.mark.parametrize("nested", [False, True])
def test_describe_tells_by_names(data, tmp_path, capsys, nested):
    state = ["x", "y", "z", "qw", "qx", "qy", "qz", "gripper.pos"]
    action = ["left_x", "left_y", "left_z", "left_gripper"]
    _names(data, state={"motors": state} if nested else state, action=action)
    assert main(["describe", str(data)]) == 0
    file = tmp_path / "robot.yaml"
    file.write_text(capsys.readouterr().out)
    robot = load_robot(file)
    assert [(g.name, g.start, g.end) for g in robot.state] == [
        ("position", 0, 3), ("rotation", 3, 7), ("gripper", 7, 8),
    ]  # fmt: skip
    assert robot.state[1].rotation == "quaternion_wxyz"
    assert [g.name for g in robot.action] == ["left_position", "left_gripper"]
    assert robot.action[1].gripper == "open_positive"


def test_describe_keeps_columns_that_are_groups(write_lerobot, tmp_path, capsys):
    rng = np.random.default_rng(0)
    columns = {
        "action.arm": rng.standard_normal((10, 3)).astype(np.float32),
        "action.gripper": rng.standard_normal(10).astype(np.float32),
        "state.arm": rng.standard_normal((10, 3)),
    }
    root = write_lerobot(tmp_path / "data", version="v2.1", lengths=(10,), cameras=TOP, columns=columns)
    assert main(["describe", str(root)]) == 0
    file = tmp_path / "robot.yaml"
    file.write_text(capsys.readouterr().out)
    robot = load_robot(file)
    assert [(g.name, g.key, g.gripper) for g in robot.action] == [
        ("arm", "action.arm", "none"), ("gripper", "action.gripper", "open_positive"),
    ]  # fmt: skip
    assert [(g.name, g.key) for g in robot.state] == [("arm", "state.arm")]


def test_doctor_is_content_with_sound_data(data, capsys):
    assert main(["doctor", str(data)]) == 0
    out = capsys.readouterr().out
    assert "2 episodes, 40 frames" in out
    assert "2 instructions of 2 words; the most frequent in 1 of 2 episodes" in out
    assert "0 errors, 0 warnings" in out


def test_doctor_says_one_of_one_word_and_ranges_of_several(write_lerobot, tmp_path, capsys):
    lines = [json.dumps({"task_index": i, "task": task}) for i, task in enumerate(("lift", "push the cube"))]
    for name, episodes in {"one": 1, "two": 2}.items():
        root = write_lerobot(tmp_path / name, version="v2.1", lengths=(10,) * episodes, cameras=TOP)
        (root / "meta/tasks.jsonl").write_text("\n".join(lines))
        assert main(["doctor", str(root)]) == 0
    out = capsys.readouterr().out
    assert "1 instruction of 1 word; the most frequent in 1 of 1 episode\n" in out
    assert "2 instructions of 1 to 3 words; the most frequent in 1 of 2 episodes\n" in out


def _table(root, episode: int, change) -> None:
    file = root / f"data/chunk-000/episode_{episode:06d}.parquet"
    pq.write_table(change(pq.read_table(file)), file)


def _set(key, values):
    return lambda t: t.set_column(t.column_names.index(key), key, pa.array(values(t), t[key].type))


FAULTS = {
    "lost rows": (lambda r: _table(r, 1, lambda t: t.slice(0, 9)), "9 rows, and episode 1 has 15 frames"),
    "no file": (lambda r: (r / "data/chunk-000/episode_000001.parquet").unlink(), "there is no such file"),
    "null action": (
        lambda r: _table(r, 0, _set("action", lambda t: [None, *t["action"].to_pylist()[1:]])),
        "episode 0, frame 0: 'action' is null",
    ),
    "nan": (
        lambda r: _table(r, 1, _set("action", lambda t: [*t["action"].to_pylist()[:-1], [float("nan")] * 4])),
        "episode 1, frame 14: 'action' holds NaN",
    ),
    "task": (
        lambda r: _table(r, 1, _set("task_index", lambda t: [7] * len(t))),
        "episode 1, frame 0: no instruction",
    ),
    "wrong episode": (
        lambda r: _table(r, 1, _set("episode_index", lambda t: [0] * len(t))),
        "episode 1, frame 0: the row belongs to another episode",
    ),
    "frame index": (
        lambda r: _table(r, 1, _set("frame_index", lambda t: [*range(14), 99])),
        "episode 1, frame 14: frame_index does not count",
    ),
    "clock": (
        lambda r: _table(r, 0, _set("timestamp", lambda t: np.arange(len(t)) / 30)),
        "timestamps come at 30 Hz, meta/info.json says 20 Hz",
    ),
    "clock back": (
        lambda r: _table(r, 0, _set("timestamp", lambda t: np.zeros(len(t)))),
        "episode 0, frame 1: timestamp does not increase",
    ),
    "no camera": (
        lambda r: [f.unlink() for f in r.rglob("*.mp4")],
        "camera 'top' is declared in meta/info.json",
    ),
    "lost video": (lambda r: max(r.rglob("*.mp4")).unlink(), "episode_000001.mp4: there is no such file"),
    "pointer": (
        lambda r: max(r.rglob("*.mp4")).write_text("version https://git-lfs.github.com/spec/v1"),
        "episode_000001.mp4: a Git LFS pointer",
    ),
    "info": (lambda r: (r / "meta/info.json").write_text("[]"), "it holds a list, not a mapping"),
    "no rate": (lambda r: _info(r, fps=0), "fps must be a number above 0"),
    "another rate": (lambda r: _info(r, fps=25), "come at 20 Hz, meta/info.json says 25 Hz"),
    "no features": (lambda r: _info(r, features={}), "'features' must name what is recorded"),
    "unknown version": (lambda r: _info(r, codebase_version="v1.6"), "v1.6 is not known here"),
    "template": (lambda r: _info(r, video_path="videos/{key}.mp4"), "video_path 'videos/{key}.mp4' can't be"),
    "chunks": (lambda r: _info(r, chunks_size=1), "chunk-001"),
    "listed twice": (lambda r: _lines(r, "episodes", 0, 1), "episode 1 is listed twice"),
    "no length": (lambda r: _lines(r, "episodes", {"episode_index": 0}), "'length' must be a whole number"),
    "other length": (
        lambda r: _lines(r, "episodes", {"episode_index": 0, "length": 24}),
        "25 rows, and episode 0 has 24 frames",
    ),
    "tasks are gone": (lambda r: (r / "meta/tasks.jsonl").unlink(), "no instruction (task_index is 0"),
    "empty task": (
        lambda r: _lines(r, "tasks", {"task_index": 0, "task": " "}),
        "episode 0, frame 0: no instr",
    ),
    "text": (
        lambda r: _table(r, 0, lambda t: _put(t, "action", ["up"] * len(t))),
        "frame 0: 'action' holds string",
    ),
    "ragged": (
        lambda r: _table(r, 0, lambda t: _put(t, "action", [[0.0] * (4 + i % 2) for i in range(len(t))])),
        "episode 0, frame 1: 'action' has 5 dims, and 4 in the first frame",
    ),
    "narrow": (
        lambda r: [_table(r, e, lambda t: _put(t, "action", [[0.0] * 3] * len(t))) for e in (0, 1)],
        "'action' has 3 dims, and 4 by meta/info.json",
    ),
    "matrix": (
        lambda r: _table(r, 1, lambda t: _put(t, "action", [[[0.0] * 4] * 2] * len(t))),
        "episode 1, frame 0: 'action' is a matrix",
    ),
    "no state": (
        lambda r: [_table(r, e, lambda t: t.drop_columns(["observation.state"])) for e in (0, 1)],
        "has no column 'observation.state'",
    ),
    "cut table": (
        lambda r: _cut(max(r.rglob("*.parquet"))),
        "episode_000001.parquet: not a readable parquet",
    ),
    "cut video": (lambda r: _cut(max(r.rglob("*.mp4"))), "episode_000001.mp4: not a readable video"),
    "another video": (
        lambda r: shutil.copy(min(r.rglob("*.mp4")), max(r.rglob("*.mp4"))),
        "episode_000001.mp4: holds 25 frames, the metadata lists 15",
    ),
    "short video": (
        lambda r: shutil.copy(max(r.rglob("*.mp4")), min(r.rglob("*.mp4"))),
        "lacks 10 of the 25 frames of episode 0 (the first is frame 15)",
    ),
}


def _info(root, **changes) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, **changes}))


def _lines(root, name: str, line, copy: int | None = None) -> None:
    """Replace the first line of a list in meta/, by ``line`` or by a copy of another one."""
    file = root / f"meta/{name}.jsonl"
    lines = file.read_text().splitlines()
    lines[0] = json.dumps(line) if copy is None else lines[copy]
    file.write_text("\n".join(lines))


def _put(table, key, values):
    return table.set_column(table.column_names.index(key), key, pa.array(values))


def _cut(file) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("fault", FAULTS)
def test_doctor_names_what_is_wrong(data, capsys, fault):
    break_it, says = FAULTS[fault]
    break_it(data)
    # Frames that nobody listed are worth a warning: nothing reads them.
    assert main(["doctor", str(data)]) == (0 if fault == "another video" else 1)
    out = capsys.readouterr().out
    assert says in out
    assert not any(line.startswith(" ") for line in out.splitlines())


def test_doctor_finds_frames_that_do_not_decode(write_lerobot, tmp_path, capsys):
    root = write_lerobot(tmp_path / "damaged", version="v2.1", lengths=(30,), cameras=TOP, size=192, gop=30)
    video = next(root.rglob("*.mp4"))
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1500] = bytes(1500)
    video.write_bytes(bytes(content))
    assert main(["doctor", str(root), "--quick"]) == 0
    capsys.readouterr()
    assert main(["doctor", str(root)]) == 1
    out = capsys.readouterr().out
    found = re.search(rf"{video}: (?:frame (\d+)|\d+ frames, from (\d+) to \d+,) can't be decoded", out)
    assert found, out
    # The very frame that a reader meets, not the number of those that came out before it.
    source = LeRobotSource(LeRobotConfig(str(root)), horizon=1)
    first = int(found[1] or found[2])
    with pytest.raises(BadDataError, match=f"frame {first} can't be decoded"):
        source[first]


def test_inspect_shows_robot_cameras_and_what_is_missing(write_lerobot, tmp_path, capsys):
    columns = {"action": np.ones((8, 5), np.float32), "state": np.zeros((8, 44), np.float32)}
    root = write_lerobot(tmp_path / "data", version="v2.0", lengths=(8,), columns=columns)
    for file in root.rglob("observation.images.wrist/*.mp4"):
        file.unlink()
    modality = {
        "action": {"arm": {"start": 0, "end": 2, "range": [-0.5, 0.5], "colour": "red"}},
        "video": {"front": {"original_key": TOP[0]}, "hand": {"original_key": "observation.images.wrist"}},
    }
    (root / "meta/modality.json").write_text(json.dumps(modality))
    assert main(["inspect", str(root)]) == 0
    out = capsys.readouterr().out
    assert "camera    front, 64 x 64, from observation.images.top" in out
    assert "camera 'hand' ('observation.images.wrist') has no pictures" in out
    assert "meta/modality.json: 'action.arm.colour' is not read" in out
    assert "action arm is in [1, 1], beyond the range" in out
    assert "2 of 2 action dims are constant" in out
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["names"] = {"motors": ["a0", "a1", "a2", "a3", "a4"]}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert main(["inspect", str(root)]) == 0
    assert "arm[1] (unknown) a1 " in capsys.readouterr().out
