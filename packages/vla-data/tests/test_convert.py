"""``vla-data convert``: v2.0 and v2.1 as v3.0, read equal by this package and by lerobot."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.cli import main
from vla_data.convert import convert
from vla_data.doctor import examine
from vla_data.formats.opening import open_layout

GOLDEN = Path(__file__).parent / "golden" / "lerobot_v21" / "data_set"
CHUNK = 4


def equal(old: Path, new: Path, cameras: tuple[str, ...] | None = None) -> None:
    """Every frame, number, mask and instruction is the same."""
    a = LeRobotSource(LeRobotConfig(str(old), cameras=cameras), CHUNK)
    b = LeRobotSource(LeRobotConfig(str(new)), CHUNK)
    assert len(a) == len(b)
    assert a.spec == b.spec
    for i in range(len(a)):
        one, other = a[i], b[i]
        assert np.array_equal(one.actions, other.actions)
        assert np.array_equal(one.action_mask, other.action_mask)
        assert np.array_equal(one.observation.state, other.observation.state)
        assert one.observation.instruction == other.observation.instruction
        assert one.meta["frame"] == other.meta["frame"]
        for name, image in one.observation.images.items():
            assert np.array_equal(image, other.observation.images[name]), (i, name)


def as_lerobot_reads(root: Path, fps: float) -> None:
    """What lerobot reads from ``root`` is what this package reads."""
    pytest.importorskip("lerobot")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    chunk = {"action": [i / fps for i in range(CHUNK)]}
    theirs = LeRobotDataset(
        "local/new", root=root, video_backend="pyav", return_uint8=True, delta_timestamps=chunk
    )
    ours = LeRobotSource(LeRobotConfig(str(root)), CHUNK)
    assert len(theirs) == len(ours)
    for i in range(len(ours)):
        item, sample = theirs[i], ours[i]
        mask = sample.action_mask
        assert np.array_equal(~item["action_is_pad"].numpy(), mask[:, 0])
        assert np.array_equal(item["action"].numpy()[mask], sample.actions[mask])
        assert np.array_equal(item["observation.state"].numpy(), sample.observation.state)
        assert item["task"] == sample.observation.instruction
        for name, key in ours.binding.cameras.items():
            image = item[key].permute(1, 2, 0).numpy()
            if image.dtype != np.uint8:  # pictures in parquet come as floats
                image = (image * 255).round().astype(np.uint8)
            assert np.array_equal(image, sample.observation.images[name]), (i, name)


def test_what_lerobot_0_3_3_wrote(tmp_path: Path) -> None:
    report = convert(GOLDEN, tmp_path / "new")
    assert (report.source, report.episodes, report.frames, report.videos) == ("v2.1", 2, 12, (2, 1))
    assert not report.remarks
    equal(GOLDEN, tmp_path / "new")
    as_lerobot_reads(tmp_path / "new", 10)
    assert not [f.text for f in examine(tmp_path / "new") if f.severity == "error"]
    stats = json.loads((tmp_path / "new/meta/stats.json").read_text())
    rows = LeRobotSource(LeRobotConfig(str(GOLDEN)), 1).rows("action")
    assert rows is not None
    assert np.allclose(stats["action"]["mean"], rows.mean(0))
    assert np.allclose(stats["action"]["std"], rows.std(0), rtol=1e-5)
    assert np.allclose(stats["action"]["max"], rows.max(0))
    kept = json.loads((GOLDEN / "meta/episodes_stats.jsonl").read_text().splitlines()[0])["stats"]
    row = pq.read_table(tmp_path / "new/meta/episodes/chunk-000/file-000.parquet").to_pylist()[0]
    for key in ("observation.images.top", "observation.images.wrist"):
        assert row[f"stats/{key}/mean"] == kept[key]["mean"]


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_joined_videos_hold_the_same_pictures(
    tmp_path: Path, write_lerobot, version: str, codec: str
) -> None:
    # A GOP of 12 has B-frames, whose packets are not in the order of their pictures.
    root = write_lerobot(tmp_path / "old", version=version, codec=codec, lengths=(13, 7, 5), gop=12)
    report = convert(root, tmp_path / "new")
    assert report.videos == (6, 2)
    equal(root, tmp_path / "new")
    if codec == "h264":
        as_lerobot_reads(tmp_path / "new", 20)
    assert convert(root, tmp_path / "again").videos == (6, 2)


def test_what_the_wild_leaves_out_or_adds(tmp_path: Path, write_lerobot) -> None:
    root = write_lerobot(tmp_path / "old", version="v2.0", lengths=(6, 4, 5))
    # Episode 1 is gone, no column names a task, one column is in no table, a camera has no files.
    (root / "data/chunk-000/episode_000001.parquet").unlink()
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    (root / "meta/episodes.jsonl").write_text("\n".join([lines[0], lines[2].replace("push", "lift")]) + "\n")
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file).drop_columns(["task_index"])
        more = pa.array([[float(i), 1.0] for i in range(len(table))])
        pq.write_table(table.append_column("annotation.grasp", more), file)
    shutil.rmtree(root / "videos/chunk-000/observation.images.wrist")
    modality = {
        "state": {"all": {"start": 0, "end": 5}}, "action": {"all": {"start": 0, "end": 4}},
        "video": {"eye": {"original_key": "observation.images.top"}},
    }  # fmt: skip
    (root / "meta/modality.json").write_text(json.dumps(modality))
    report = convert(root, tmp_path / "new")
    assert len(report.remarks) == 3
    for said, part in zip(report.remarks, ("wrist' is declared", "annotation.grasp", "2 is 1"), strict=True):
        assert part in said
    equal(root, tmp_path / "new")
    as_lerobot_reads(tmp_path / "new", 20)
    new = open_layout(tmp_path / "new")
    assert new.features["annotation.grasp"]["shape"] == [2]
    assert [e.index for e in new.episodes] == [0, 1]
    assert json.loads((tmp_path / "new/meta/modality.json").read_text()) == modality
    source = LeRobotSource(LeRobotConfig(str(tmp_path / "new")), 1)
    assert source.instruction(1) == "lift it"


def test_rows_whose_counts_have_gaps_are_told(
    tmp_path: Path, write_lerobot, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are counted anew: without a word nobody would know that frames are missing."""
    root = write_lerobot(tmp_path / "old", version="v2.1", lengths=(6, 4, 5, 5, 5, 5, 5))
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        gap = pa.array([i + (i > 2) for i in range(len(table))])
        pq.write_table(table.set_column(table.column_names.index("frame_index"), "frame_index", gap), file)
    assert main(["convert", str(root), str(tmp_path / "new")]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 7
    assert "episode 0, frame 3: frame_index does not count from 0 on (4)" in notes[0]
    assert "2 more lines like these" in notes[5]
    assert "frame_index is counted anew" in notes[6]


def test_a_column_that_the_first_episode_has_not_is_told(tmp_path: Path, write_lerobot) -> None:
    root = write_lerobot(tmp_path / "old", version="v2.1", lengths=(6, 4, 5))
    file = root / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.append_column("reward", pa.array([1.0] * len(table))), file)
    report = convert(root, tmp_path / "new")
    assert report.remarks == ("column 'reward', which episode 1 has and the first has not, is left out",)


@pytest.mark.parametrize("kept", [{"mean": [0.1], "std": "x"}, {"mean": [[[0.1]]]}, None])
def test_statistics_of_pictures_that_are_not_whole_are_taken_anew(
    tmp_path: Path, write_lerobot, kept: object
) -> None:
    root = write_lerobot(tmp_path / "old", version="v2.1", lengths=(6, 4))
    entries = [{"episode_index": e, "stats": {"observation.images.top": kept}} for e in range(2)]
    text = "\n".join(map(json.dumps, entries))
    (root / "meta/episodes_stats.jsonl").write_text(text, "utf-8")
    convert(root, tmp_path / "new")
    stats = json.loads((tmp_path / "new/meta/stats.json").read_text("utf-8"))
    assert np.shape(stats["observation.images.top"]["mean"]) == (3, 1, 1)


def test_pictures_in_files_are_embedded(tmp_path: Path) -> None:
    root = tmp_path / "old"
    shutil.copytree(GOLDEN, root)
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        for frame, image in enumerate(table["observation.images.wrist"].to_pylist()):
            place = root / "images/observation.images.wrist" / file.stem / f"frame_{frame:06d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(image["bytes"])
        pq.write_table(table.drop_columns(["observation.images.wrist"]), file)
    convert(root, tmp_path / "new")
    equal(root, tmp_path / "new")
    as_lerobot_reads(tmp_path / "new", 10)


def test_videos_that_are_coded_differently_stay_apart(tmp_path: Path, write_lerobot) -> None:
    top = ("observation.images.top",)
    root = write_lerobot(tmp_path / "old", version="v2.1", lengths=(6, 4, 5), cameras=top)
    other = write_lerobot(tmp_path / "hevc", version="v2.1", lengths=(6, 4, 5), cameras=top, codec="hevc")
    part = "videos/chunk-000/observation.images.top/episode_000001.mp4"
    shutil.copyfile(other / part, root / part)
    assert convert(root, tmp_path / "new").videos == (3, 3)
    equal(root, tmp_path / "new")


def test_pictures_beyond_an_episode_shift_nothing(tmp_path: Path, write_lerobot) -> None:
    top = ("observation.images.top",)
    root = write_lerobot(tmp_path / "old", version="v2.1", lengths=(4, 7, 5), cameras=top)
    folder = root / "videos/chunk-000/observation.images.top"
    shutil.copyfile(folder / "episode_000001.mp4", folder / "episode_000000.mp4")
    assert convert(root, tmp_path / "new").videos == (3, 1)
    equal(root, tmp_path / "new")
    as_lerobot_reads(tmp_path / "new", 20)


def test_a_full_disk_leaves_nothing(tmp_path: Path, write_lerobot) -> None:
    root = write_lerobot(tmp_path / "old", version="v2.1", lengths=(40, 40), size=128)

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    words = ["-m", "vla_data.cli", "convert", str(root), str(tmp_path / "new")]
    done = subprocess.run(
        [sys.executable, *words], preexec_fn=little_room, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "vla-data convert: " in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_what_is_wrong_is_one_line(tmp_path: Path, write_lerobot, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_lerobot(tmp_path / "v21", version="v2.1", lengths=(4, 3))
    new = write_lerobot(tmp_path / "v3")
    late = write_lerobot(tmp_path / "late", version="v2.1", lengths=(4, 3), shift=1.0)
    torn = write_lerobot(tmp_path / "torn", version="v2.1", lengths=(4, 3))
    file = torn / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(1, "action", pa.array([[0.0], [1.0], [2.0]])), file)
    out = str(tmp_path / "new")
    for words, said in (
        ([str(new), out], "is LeRobot v3.0 already"),
        ([str(good), str(new)], "v3 exists"),
        ([str(good), str(good / "in")], "lies inside of the data set"),
        ([str(late), out], "frames late"),
        ([str(torn), out], "'action' does not fit its feature"),
        ([str(good), out, "--video-mb", "0"], "--video_mb: must be >= 1"),
        ([str(good), out, "more"], "unknown argument 'more'"),
    ):
        assert main(["convert", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not Path(out).exists()
    assert main(["convert", str(good), out]) == 0
    assert "4 files joined into 2" in capsys.readouterr().out
