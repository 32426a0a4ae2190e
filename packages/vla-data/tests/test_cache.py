"""``vla-data cache``: smaller pictures of the same moments, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from vla_core.errors import ConfigError, UserError
from vla_core.images import resize, resize_intrinsics
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.cache import CacheConfig, build_cache
from vla_data.cache import build as building
from vla_data.cli import main
from vla_data.formats.opening import open_layout
from vla_data.formats.scan import scan
from vla_data.formats.video import open_video

HORIZON = 4


def _source(path: str | Path) -> LeRobotSource:
    return LeRobotSource(LeRobotConfig(str(path)), HORIZON)


def _videos(root: Path) -> list[Path]:
    return sorted(p.relative_to(root) for p in root.rglob("*.mp4"))


@pytest.mark.parametrize(("version", "codec"), [("v3.0", "av1"), ("v3.0", "hevc"), ("v2.1", "h264")])
def test_the_copy_has_the_same_moments(tmp_path: Path, write_lerobot, version: str, codec: str) -> None:
    root = write_lerobot(tmp_path / "old", version=version, codec=codec, gop=20)
    out = tmp_path / "new"
    report = build_cache(root, out, CacheConfig(32, 48, gop=3, crf=8))
    assert report.frames == 34
    assert report.cameras == 2
    assert report.error < 3
    assert report.psnr > 35
    old, new = _source(root), _source(out)
    assert len(old) == len(new)
    for i in range(0, len(old), 3):
        a, b = old[i], new[i]
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.action_mask, b.action_mask)
        assert a.observation.state is not None
        assert b.observation.state is not None
        assert np.array_equal(a.observation.state, b.observation.state)
        assert a.observation.instruction == b.observation.instruction
        assert a.meta == b.meta
        for name, image in a.observation.images.items():
            small = b.observation.images[name]
            assert small.shape == (32, 48, 3)
            assert np.abs(resize(image, 32, 48).astype(int) - small).mean() < 4
    assert _videos(root) == _videos(out)
    for file in _videos(root):
        assert np.array_equal(scan(root / file).seconds(), scan(out / file).seconds())
        with open_video(out / file) as video:
            keys = [i for i, frame in enumerate(video.decode(video=0)) if frame.key_frame]
        assert keys[0] == 0
        assert max(np.diff(keys)) <= 3
    assert main(["doctor", str(out)]) == 0
    # All that holds no pictures is the same file.
    for file in root.rglob("*.parquet"):
        assert file.read_bytes() == (out / file.relative_to(root)).read_bytes()
    feature = open_layout(out).features["observation.images.top"]
    assert feature["shape"] == [32, 48, 3]
    assert feature["info"]["video.codec"] == "h264"
    assert json.loads((out / "meta/vla_cache.json").read_text())["gop"] == 3


def test_recorded_cameras_follow_and_lerobot_reads_it(toy, tmp_path: Path) -> None:
    out = tmp_path / "new"
    build_cache(toy.path, out, CacheConfig(16, 24, gop=2))
    old, new = _source(toy.path), _source(out)
    assert [(c.height, c.width) for c in new.spec.observation.cameras] == [(16, 24)] * 2
    spec = json.loads((out / "meta/vla_spec.json").read_text())
    assert spec["observation"]["cameras"][0] == {"name": "left", "height": 16, "width": 24}
    for i in (0, 30, 62):
        a, b = old[i].observation, new[i].observation
        assert a.intrinsics
        assert b.intrinsics
        assert a.extrinsics
        assert b.extrinsics
        assert a.depth
        assert b.depth
        for name, k in a.intrinsics.items():
            assert np.array_equal(b.intrinsics[name], resize_intrinsics(k, (32, 32), (16, 24)))
            assert np.array_equal(a.extrinsics[name], b.extrinsics[name])
            assert np.array_equal(a.depth[name], b.depth[name])
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    theirs = LeRobotDataset("local/new", root=out, video_backend="pyav", return_uint8=True)
    assert len(theirs) == len(new)
    for i in (0, 40, 62):
        row = theirs[i]
        image = row["observation.images.left"].permute(1, 2, 0).numpy()
        assert np.array_equal(image, new[i].observation.images["left"])
        k = row["observation.intrinsics.left"].numpy()
        intrinsics = new[i].observation.intrinsics
        assert intrinsics is not None
        assert np.array_equal(k, intrinsics["left"])
        assert np.array_equal(row["action"].numpy(), new[i].actions[0])


def test_it_appears_whole_or_not_at_all(
    tmp_path: Path, write_lerobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_lerobot(tmp_path / "old")
    seen = []
    transcode = building.transcode

    def second_fails(*args, **kwargs):
        seen.append(args)
        if len(seen) == 2:
            raise OSError("no space left")
        return transcode(*args, **kwargs)

    monkeypatch.setattr(building, "transcode", second_fails)
    with pytest.raises(OSError, match="no space left"):
        build_cache(root, tmp_path / "new", CacheConfig(32, 32))
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_what_is_wrong_is_one_line(tmp_path: Path, write_lerobot, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_lerobot(tmp_path / "old")
    size = ["--height", "32", "--width", "32"]
    (tmp_path / "there").mkdir()
    for words, said in (
        ([str(root), str(tmp_path / "there"), *size], "there exists"),
        ([str(root), str(root / "in"), *size], "lies inside of the data set"),
        ([str(tmp_path / "none"), str(tmp_path / "new"), *size], "no such dataset directory"),
        ([str(root), str(tmp_path / "new"), "--height", "33", "--width", "32"], "--height: must be even"),
        ([str(root), str(tmp_path / "new"), *size, "--gop", "0"], "--gop: must be >= 1"),
    ):
        assert main(["cache", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    late = write_lerobot(tmp_path / "late", shift=1.0)
    with pytest.raises(UserError, match="frames late"):
        build_cache(late, tmp_path / "new", CacheConfig(32, 32))
    with pytest.raises(ConfigError, match="--crf"):
        CacheConfig(32, 32, crf=99)
    assert not (tmp_path / "new").exists()
