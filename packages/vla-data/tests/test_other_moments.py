"""Data that read well and are of other moments, sizes or rates than they seem: refused, or said."""

from __future__ import annotations

import io
import json
import struct

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from av.video.reformatter import Colorspace
from PIL import Image
from vla_core.errors import UserError
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.convert import convert
from vla_data.doctor import examine

TOP = "observation.images.top"
SIZE = 16


def _open(root, **options) -> LeRobotSource:
    return LeRobotSource(LeRobotConfig(str(root), **options), 2)


def _refuses(root, pattern, **options) -> None:
    with pytest.raises(UserError, match=pattern) as error:
        _open(root, **options)
    assert "\n" not in str(error.value)


def _change(root, change) -> None:
    for file in sorted(root.glob("data/*/*.parquet")):
        pq.write_table(change(pq.read_table(file)), file)


def _put(table, key, values):
    at = table.column_names.index(key)
    return table.set_column(at, key, values if isinstance(values, pa.Array) else pa.array(values))


def _coded(pixels, kind="PNG", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def pictures(write_lerobot, tmp_path):
    """A data set whose pictures are what a function of the row says, coded, in parquet."""

    def write(coded, **options):
        feature = {"dtype": "image", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]}
        root = write_lerobot(tmp_path / "pictures", cameras=(), features={TOP: feature}, **options)

        def add(table):
            return table.append_column(
                TOP, pa.array([{"bytes": coded(i), "path": None} for i in range(len(table))])
            )

        _change(root, add)
        return root

    return write


def _black(_: int) -> bytes:
    return _coded(np.zeros((SIZE, SIZE, 3), np.uint8))


def test_rows_in_another_order_than_time(pictures, tmp_path):
    root = pictures(_black, version="v2.1", lengths=(4, 5))
    assert _open(root).notes == ()
    _change(root, lambda t: t.take(pa.array([1, 0, *range(2, len(t))])))
    says = "episode 0, frame 1: frame_index goes back from 1 to 0: the rows are not in the order of time"
    _refuses(root, says)
    # A converted copy would count them anew, and nobody could tell any more.
    with pytest.raises(UserError, match=says):
        convert(root, tmp_path / "converted")


def test_two_episodes_that_share_their_index(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "merged", lengths=(6, 5), cameras=(TOP,))
    _change(root, lambda t: _put(t, "index", t["frame_index"].combine_chunks()))
    file = next(root.glob("meta/episodes/*/*.parquet"))
    table = _put(pq.read_table(file), "dataset_from_index", [0, 0])
    pq.write_table(_put(table, "dataset_to_index", table["length"].combine_chunks()), file)
    _refuses(root, r"episode 1, frame 0: the row belongs to another episode by its episode_index \(0\)")


def test_an_episode_index_of_before_a_file_was_renamed(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "renamed", version="v2.1", lengths=(6, 5), cameras=(TOP,))
    _change(root, lambda t: _put(t, "episode_index", [7] * len(t)))
    (said,) = _open(root).notes
    assert said.endswith("episode 0, frame 0: the row belongs to another episode by its episode_index (7)")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_rows_that_were_taken_out_and_their_pictures_were_not(write_lerobot, tmp_path, version):
    root = write_lerobot(tmp_path / "cut", version=version, lengths=(8,), cameras=(TOP,))
    _change(root, lambda t: t.take(pa.array([0, 1, 4, 5, 6, 7])))
    if version == "v2.1":
        line = {"episode_index": 0, "tasks": ["push it"], "length": 6}
        (root / "meta/episodes.jsonl").write_text(json.dumps(line))
    else:
        _change(root, lambda t: _put(t, "index", np.arange(6)))
        file = next(root.glob("meta/episodes/*/*.parquet"))
        table = _put(_put(pq.read_table(file), "dataset_to_index", [6]), "length", [6])
        pq.write_table(_put(table, f"videos/{TOP}/to_timestamp", [0.3]), file)
    says = r"frame 2: frame_index does not count from 0 on \(4\), and .*mp4 holds 8 frames, .*6: rows were"
    _refuses(root, says)


def test_a_frame_index_with_gaps_and_as_many_pictures_is_said(pictures):
    root = pictures(_black, lengths=(5,))
    _change(root, lambda t: _put(t, "frame_index", [0, 1, 4, 5, 9]))
    (said,) = _open(root).notes
    assert "frame 2: frame_index does not count from 0 on (4)" in said


def test_clocks_of_another_rate_than_the_metadata_are_said(pictures):
    root = pictures(_black, lengths=(5, 6))
    _change(root, lambda t: _put(t, "timestamp", np.array(t["frame_index"]) / 10))
    (said,) = _open(root).notes
    assert "timestamps come at 10 Hz, meta/info.json says 20 Hz; a policy's steps are of 20 Hz" in said
    # A clock that trembles is one of hardware.
    trembling = np.random.default_rng(0).uniform(0, 0.02, 11)
    _change(root, lambda t: _put(t, "timestamp", np.array(t["frame_index"]) / 20 + trembling))
    assert _open(root).notes == ()


def test_columns_that_count_may_be_missing_here_and_there(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "some", version="v2.1", lengths=(6, 5), cameras=(TOP,))
    file = root / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["frame_index", "timestamp"]), file)
    assert len(_open(root)) == 11


def test_grey_pictures_of_many_bits(pictures):
    root = pictures(lambda i: _coded(np.full((SIZE, SIZE), 40_000, np.uint16)))
    _refuses(root, "more than 8 bits, which would be cut off at 255")


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_camera_has_one_size(pictures, cache):
    root = pictures(lambda i: _coded(np.zeros((SIZE + 4 * (i == 3), SIZE, 3), np.uint8)), lengths=(5,))
    with pytest.raises(UserError, match="has a picture of 16 x 20 here, and others of 16 x 16"):
        _open(root, cache=cache)[3]


def test_pictures_are_turned_as_their_exif_says(pictures):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: a quarter turn clockwise
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[: SIZE // 2] = 255
    image = _open(pictures(lambda i: _coded(pixels, "JPEG", exif=exif)))[0].observation.images["top"]
    assert image[:, SIZE // 2 + 1 :].min() > 200
    assert image[:, : SIZE // 2 - 1].max() < 50


def test_exif_that_is_none_asks_for_nothing(pictures):
    pixels = np.full((SIZE, SIZE, 3), 7, np.uint8)
    root = pictures(lambda i: _coded(pixels, exif=b"no TIFF at all"))
    assert (_open(root)[0].observation.images["top"] == 7).all()


def test_a_video_that_players_turn_is_said(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "turned", lengths=(5,), cameras=(TOP,))
    assert _open(root).notes == ()
    file = next(root.rglob("*.mp4"))
    content = bytearray(file.read_bytes())
    at = content.find(b"tkhd") + 4 + 4 + 20 + 16  # of version 0
    content[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    file.write_bytes(content)
    (said,) = _open(root).notes
    assert f"{file}: players turn its pictures by -90 degrees" in said


@pytest.mark.parametrize(
    ("bad", "says"), [(np.nan, "holds NaN or infinity, as 1 frames do"), (None, "is null")]
)
def test_calibration_that_is_none(write_lerobot, tmp_path, bad, says):
    key = "observation.intrinsics.top"
    numbers = np.tile(np.eye(3, dtype=np.float32).reshape(9), (11, 1))
    columns = {"observation.state": np.zeros((11, 2)), "action": np.zeros((11, 2)), key: numbers}
    root = write_lerobot(tmp_path / "poses", lengths=(6, 5), cameras=(TOP,), columns=columns)
    rows = numbers.tolist()
    rows[7] = None if bad is None else [bad] * 9
    _change(root, lambda t: _put(t, key, rows))
    _refuses(root, f"episode 1, frame 1: '{key}' {says}")


def test_a_spec_of_other_data(write_lerobot, toy_spec, tmp_path):
    root = write_lerobot(tmp_path / "spec", lengths=(5,), cameras=(TOP,))
    (root / "meta/vla_spec.json").write_text(json.dumps(toy_spec.to_dict()))
    _refuses(root, r"vla_spec\.json: its groups have 2 dims of 'action', which has 4 by meta/info\.json")


@pytest.mark.parametrize(("unit", "metres"), [(None, None), ("mm", 1.2), ("m", 1200.0)])
def test_depth_in_whole_numbers_needs_a_unit(write_lerobot, tmp_path, unit, metres):
    key = "observation.depth.top"
    columns = {"action": np.zeros((5, 2)), key: np.full((5, SIZE * SIZE), 1200, np.uint16)}
    feature = {"dtype": "uint16", "shape": [SIZE, SIZE], "names": None}
    if unit is not None:
        feature["info"] = {"depth_unit": unit}
    options = {"columns": columns, "features": {key: feature}, "size": SIZE}
    root = write_lerobot(tmp_path / "depth", lengths=(5,), cameras=(TOP,), **options)
    depth = _open(root)[0].observation.depth
    if metres is None:
        assert depth is None
        said = [finding.text for finding in examine(root)]
        assert any(
            "its whole numbers are no metres, and meta/info.json does not say" in text for text in said
        )
    else:
        assert np.allclose(depth["top"], metres)


def test_an_instruction_that_says_nothing(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "words", lengths=(5,), cameras=(TOP,))
    _refuses(root, "instruction: it is empty, and nobody could ask the policy so", instruction=" ")


def _painted(file, matrix, tag, curve=None):
    """A film of one colour, coded by one matrix and tagged as of one; returns the colour."""
    shown = np.tile(np.array([220, 40, 90], np.uint8), (32, 32, 1))
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"crf": "5"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        if tag is not None:
            stream.codec_context.colorspace = tag
        if curve is not None:
            stream.codec_context.color_trc = curve
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            if matrix is not None:
                frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return shown[0, 0].astype(int)


BT2020 = 9


@pytest.mark.parametrize(
    ("matrix", "tag"),
    [(Colorspace.ITU709, 1), (Colorspace.ITU601, 6), (BT2020, 9), (BT2020, 10), (None, None)],
)
@pytest.mark.parametrize("cache", ["none", "ram"])
def test_colours_are_those_of_the_matrix_that_the_video_states(write_lerobot, tmp_path, matrix, tag, cache):
    root = write_lerobot(tmp_path / "colours", lengths=(5,), cameras=(TOP,), size=32)
    file = next(root.rglob("*.mp4"))
    shown = _painted(file, matrix, tag)
    image = _open(root, cache=cache)[2].observation.images["top"]
    assert np.abs(image[8:24, 8:24].astype(int) - shown).max() <= 4


@pytest.mark.parametrize(
    ("tag", "curve", "says"),
    [
        (9, 18, "it is HDR (HLG), and pictures are read without that curve"),
        (9, 16, "it is HDR (PQ)"),
        (8, None, "its colour matrix (YCgCo) is not known here"),
        (9, 1, None),
        (1, 1, None),
    ],
)
def test_colours_that_are_not_shown_as_stated_are_said(write_lerobot, tmp_path, tag, curve, says):
    root = write_lerobot(tmp_path / "colours", lengths=(5,), cameras=(TOP,), size=32)
    _painted(next(root.rglob("*.mp4")), BT2020, tag, curve)
    said = [note for note in _open(root).notes if "colours" in note]
    assert len(said) == (0 if says is None else 1)
    assert says is None or says in said[0]


def test_two_episodes_that_would_show_the_same_pictures(write_lerobot, tmp_path):
    root = write_lerobot(tmp_path / "same", lengths=(6, 5), cameras=(TOP,))
    file = next(root.glob("meta/episodes/*/*.parquet"))
    table = _put(pq.read_table(file), f"videos/{TOP}/from_timestamp", [0.0, 0.1])
    pq.write_table(_put(table, f"videos/{TOP}/to_timestamp", [0.3, 0.35]), file)
    says = (
        "episodes 0 and 1 both show frame 2, and their numbers differ there: their from_timestamp is 0 s and "
    )
    _refuses(root, says)
    assert any("episodes 0 and 1 both show frame 2" in finding.text for finding in examine(root))
    # Windows of one recording share their rows too.
    table = _put(pq.read_table(file), "dataset_from_index", [0, 2])
    pq.write_table(_put(table, "dataset_to_index", [6, 7]), file)
    _change(root, lambda t: t.drop_columns(["episode_index", "frame_index"]))
    assert len(_open(root)) == 11


def test_an_episode_told_twice_may_share_its_pictures(write_lerobot, tmp_path):
    own = np.arange(12, dtype=np.float32).reshape(6, 2)
    columns = {"observation.state": np.concatenate([own, own]), "action": np.concatenate([own, own]) + 1}
    root = write_lerobot(tmp_path / "twice", lengths=(6, 6), cameras=(TOP,), columns=columns)
    file = next(root.glob("meta/episodes/*/*.parquet"))
    table = _put(pq.read_table(file), f"videos/{TOP}/from_timestamp", [0.0, 0.0])
    pq.write_table(_put(table, f"videos/{TOP}/to_timestamp", [0.3, 0.3]), file)
    assert not [note for note in _open(root).notes if "both show" in note]
    # One row more of the first: the same pictures would be of a row later.
    _change(root, lambda t: _put(t, "observation.state", [*own[1:].tolist(), [9.0, 9.0], *own.tolist()]))
    _refuses(root, "episodes 0 and 1 both show frame 0, and their numbers differ there")


@pytest.mark.parametrize(
    ("frame", "stamps"),
    [
        ([0, 1, 2, 3, 4, 5], None),
        # Their number in a recording that was cut, and one frame too many at the end of the video.
        ([40, 41, 42, 43, 44, 45], None),
        # Cut off at the beginning, and the video's place with it: pictures are found by the time stamps.
        ([1, 2, 3, 4, 5, 6], [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]),
    ],
)
def test_a_video_that_is_longer_is_no_reason_by_itself(write_lerobot, tmp_path, frame, stamps):
    root = write_lerobot(tmp_path / "longer", version="v2.1", lengths=(8,), cameras=(TOP,))
    columns = {"frame_index": frame, "timestamp": stamps or np.array(frame) / 20}

    def change(table):
        table = table.slice(0, 6)
        for key, values in columns.items():
            table = _put(table, key, pa.array(values, table.schema.field(key).type))
        return table

    _change(root, change)
    line = {"episode_index": 0, "tasks": ["push it"], "length": 6}
    (root / "meta/episodes.jsonl").write_text(json.dumps(line))
    assert len(_open(root)) == 6


def test_a_clock_that_runs_on_over_all_episodes_is_as_coarse_as_float32(pictures):
    root = pictures(_black, lengths=(40, 40))
    stamps = np.float32(200_000 + np.arange(80) / 50)  # steps of 1/64 s
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"fps": 50}))
    _change(root, lambda t: _put(t, "timestamp", stamps))
    assert not [note for note in _open(root).notes if "Hz" in note]
