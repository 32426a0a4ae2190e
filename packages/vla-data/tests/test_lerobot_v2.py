"""LeRobot v2.0 and v2.1: what lerobot 0.3.3 wrote reads as it reads it; templates and names of the wild."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vla_core.errors import UserError
from vla_data import LeRobotConfig, LeRobotSource

GOLDEN = Path(__file__).parent / "golden" / "lerobot_v21"


def _change_info(root: Path, **changes) -> dict:
    info = json.loads((root / "meta/info.json").read_text())
    info |= changes
    (root / "meta/info.json").write_text(json.dumps(info))
    return info


def _equals_golden(source: LeRobotSource) -> None:
    read = np.load(GOLDEN / "read.npz")
    assert len(source) == len(read["action"]) == 12
    for i in range(len(source)):
        sample = source[i]
        mask = sample.action_mask
        assert np.array_equal(mask[:, 0], ~read["action_is_pad"][i])
        assert np.array_equal(sample.actions[mask], read["action"][i][mask])
        assert np.array_equal(sample.observation.state, read["observation.state"][i])
        assert sample.observation.instruction == read["task"][i]
        assert sample.meta["episode"] == read["episode_index"][i]
        assert sample.meta["frame"] == read["frame_index"][i]
        for name in ("top", "wrist"):
            assert np.array_equal(sample.observation.images[name], read[f"observation.images.{name}"][i])


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_every_frame_is_what_lerobot_0_3_3_reads(cache):
    _equals_golden(LeRobotSource(LeRobotConfig(str(GOLDEN / "data_set"), cache=cache), 4))


def test_a_subset_in_another_order():
    read = np.load(GOLDEN / "read.npz")
    source = LeRobotSource(LeRobotConfig(str(GOLDEN / "data_set")), 4, episodes=[1, 0])
    assert [source[i].meta["episode"] for i in range(12)] == [1] * 5 + [0] * 7
    for i in range(12):
        for name in ("top", "wrist"):
            image = read[f"observation.images.{name}"][(i + 7) % 12]
            assert np.array_equal(source[i].observation.images[name], image)


def test_pictures_in_files_alone(tmp_path):
    root = tmp_path / "files"
    shutil.copytree(GOLDEN / "data_set", root)
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        for episode, image in enumerate(table["observation.images.wrist"].to_pylist()):
            assert image["bytes"], episode
            place = root / "images/observation.images.wrist" / file.stem / f"frame_{episode:06d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(image["bytes"])
        pq.write_table(table.drop_columns(["observation.images.wrist"]), file)
    _equals_golden(LeRobotSource(LeRobotConfig(str(root)), 4))
    (root / "images/observation.images.wrist/episode_000001/frame_000002.png").write_bytes(b"\x89PNG nothing")
    source = LeRobotSource(LeRobotConfig(str(root)), 4)
    with pytest.raises(UserError, match=r"episode 1, frame 2: .*frame_000002\.png is not a readable picture"):
        source[9]


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
@pytest.mark.parametrize("chunk", ["{episode_chunk:03d}", "{chunk_index:03d}", "{episode_index:03d}"])
def test_templates_of_the_wild(tmp_path, version, chunk):
    root = tmp_path / "wild"
    shutil.copytree(GOLDEN / "data_set", root)
    _change_info(
        root,
        codebase_version=version,
        data_path=f"data/chunk-{chunk}/episode_{{episode_index:06d}}.parquet",
        video_path=f"videos/chunk-{chunk}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
    )
    _equals_golden(LeRobotSource(LeRobotConfig(str(root)), 4))


def test_a_template_that_cannot_be_filled_in(tmp_path):
    root = tmp_path / "template"
    shutil.copytree(GOLDEN / "data_set", root)
    _change_info(root, data_path="data/{chunk}/x.parquet")
    with pytest.raises(UserError, match=r"info\.json: data_path 'data/\{chunk\}/x\.parquet' can't be filled"):
        LeRobotSource(LeRobotConfig(str(root)), 1)


def _rename(root: Path, names: dict[str, str]) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    _change_info(root, features={names.get(k, k): v for k, v in info["features"].items()})
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.rename_columns([names.get(c, c) for c in table.column_names]), file)
    for old, new in names.items():
        for folder in root.glob(f"videos/*/{old}"):
            folder.rename(folder.with_name(new))


@pytest.mark.parametrize(
    ("names", "cameras"),
    [
        (
            {"observation.images.top": "image", "observation.images.wrist": "wrist_image"},
            ["image", "wrist_image"],
        ),
        (
            {"observation.images.top": "video.top", "observation.images.wrist": "images.wrist"},
            ["top", "wrist"],
        ),
    ],
)
def test_names_of_the_wild(tmp_path, names, cameras):
    root = tmp_path / "names"
    shutil.copytree(GOLDEN / "data_set", root)
    _rename(root, {**names, "observation.state": "state", "action": "actions"})
    plain = LeRobotSource(LeRobotConfig(str(GOLDEN / "data_set")), 4)
    source = LeRobotSource(LeRobotConfig(str(root)), 4)
    assert [c.name for c in source.spec.observation.cameras] == cameras
    for i in (0, 6, 11):
        a, b = plain[i], source[i]
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.observation.state, b.observation.state)
        for one, other in zip(("top", "wrist"), cameras, strict=True):
            assert np.array_equal(a.observation.images[one], b.observation.images[other])


def test_one_column_a_group(write_lerobot, tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "action.arm": rng.standard_normal((10, 3)).astype(np.float32),
        "action.gripper": rng.standard_normal(10).astype(np.float32),
        "state.arm": rng.standard_normal((10, 3)),
    }
    root = write_lerobot(
        tmp_path / "columns", version="v2.1", lengths=(6, 4), cameras=("video.top",), columns=columns
    )
    source = LeRobotSource(LeRobotConfig(str(root)), 1)
    assert [(g.name, g.dim) for g in source.spec.action.groups] == [("arm", 3), ("gripper", 1)]
    assert [(g.name, g.dim) for g in source.spec.observation.state] == [("arm", 3)]
    want = np.concatenate([columns["action.arm"], columns["action.gripper"][:, None]], 1)
    assert np.array_equal(source.rows("action"), want)
    assert np.array_equal(source.rows("state"), columns["state.arm"].astype(np.float32))


def test_a_camera_without_files_is_named(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "camera", version="v2.1", lengths=(6, 4))
    shutil.rmtree(next(root.glob("videos/*/observation.images.wrist")))
    with pytest.raises(UserError, match=r"camera 'wrist' is declared in meta/info\.json") as error:
        LeRobotSource(LeRobotConfig(str(root)), 1)
    assert "leave it out: cameras: [top]" in str(error.value)
    assert "\n" not in str(error.value)
    source = LeRobotSource(LeRobotConfig(str(root), cameras=("top",)), 1)
    assert list(source[3].observation.images) == ["top"]


@pytest.mark.parametrize("where", ["info", "video_info"])
@pytest.mark.parametrize("flag", ["is_depth_map", "video.is_depth_map"])
def test_a_depth_map_is_no_camera(write_lerobot, tmp_path, where, flag):
    root = write_lerobot(tmp_path / "depth", version="v2.1", lengths=(4,))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"][where] = {flag: True}
    _change_info(root, features=info["features"])
    source = LeRobotSource(LeRobotConfig(str(root)), 1)
    assert [c.name for c in source.spec.observation.cameras] == ["top"]
    with pytest.raises(UserError, match="no camera 'wrist'"):
        LeRobotSource(LeRobotConfig(str(root), cameras=("wrist",)), 1)


@pytest.mark.parametrize("names", [["height", "width", "channel"], ["h", "w", "c"], ["rgb"], None])
@pytest.mark.parametrize("shape", [[64, 64, 3], [3, 64, 64], [3, 11, 12]])
def test_whatever_the_info_says_of_a_picture(write_lerobot, tmp_path, names, shape):
    root = write_lerobot(tmp_path / "shape", version="v2.0", lengths=(2,), cameras=("image",))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["image"] |= {"shape": shape, "names": names}
    _change_info(root, features=info["features"])
    source = LeRobotSource(LeRobotConfig(str(root)), 1)
    (camera,) = source.spec.observation.cameras
    assert (camera.name, camera.height, camera.width) == ("image", 64, 64)
    assert source[1].observation.images["image"].shape == (64, 64, 3)


def test_rows_and_metadata_that_differ(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "rows", version="v2.1", lengths=(6, 4), cameras=("image",))
    file = root / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(file).slice(0, 3), file)
    with pytest.raises(UserError, match=r"episode_000001\.parquet: 3 rows, and episode 1 has 4 frames"):
        LeRobotSource(LeRobotConfig(str(root)), 1)
    assert len(LeRobotSource(LeRobotConfig(str(root), episodes=(0,)), 1)) == 6
    file.unlink()
    with pytest.raises(
        UserError, match=r"episode_000001\.parquet: not a readable parquet file \(there is no"
    ):
        LeRobotSource(LeRobotConfig(str(root)), 1)


def test_the_episodes_of_a_config(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "episodes", version="v2.1", lengths=(3, 2, 2, 4), cameras=("image",))

    def chosen(**options):
        return list(LeRobotSource.list_episodes(LeRobotConfig(str(root), **options)))

    assert chosen() == [0, 1, 2, 3]
    assert chosen(episodes="1:3") == [1, 2]
    assert chosen(episodes="2:, 0:1") == [0, 2, 3]
    assert chosen(episodes=(3, 1), exclude_episodes=(1,)) == [3]
    assert chosen(exclude_episodes=":2") == [2, 3]
    source = LeRobotSource(LeRobotConfig(str(root), episodes="1:3", instruction="do it"), 1)
    assert source.lengths() == {1: 2, 2: 2}
    assert {source[i].observation.instruction for i in range(4)} == {"do it"}
    for options, says in (
        ({"episodes": "650"}, "is no range"),
        ({"episodes": "7:9"}, r"no episode in 7:9 \(it has 0 to 3\)"),
        ({"episodes": (9,)}, "no episode 9"),
        ({"exclude_episodes": ":"}, "none of the 4 episodes"),
    ):
        with pytest.raises(UserError, match=says):
            chosen(**options)


def test_a_hub_id_without_a_copy(tmp_path, monkeypatch, write_lerobot):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"nobody/nothing: no such directory.*download it first") as error:
        LeRobotSource(LeRobotConfig("nobody/nothing"), 1)
    assert "\n" not in str(error.value)
    write_lerobot(tmp_path / "nobody/nothing", version="v2.1", lengths=(3,), cameras=("image",))
    assert len(LeRobotSource(LeRobotConfig("nobody/nothing"), 1)) == 3


def test_text_is_found_where_it_stands(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "text", version="v2.1", lengths=(3, 2), cameras=("image",))
    for file in root.glob("data/*/*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["task_index"]), file)
    source = LeRobotSource(LeRobotConfig(str(root)), 1)
    assert [source.instruction(e) for e in (0, 1)] == ["push it", "pull it"]
    robot = tmp_path / "robot.yaml"
    robot.write_text("embodiment: toy\naction: [{name: action}]\ninstruction_key: [said]\n")
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.append_column("said", pa.array([f"word {i}" for i in range(len(table))])), file)
    source = LeRobotSource(LeRobotConfig(str(root), robot=str(robot)), 1)
    assert [source[i].observation.instruction for i in range(5)] == [
        "word 0", "word 1", "word 2", "word 0", "word 1",
    ]  # fmt: skip
