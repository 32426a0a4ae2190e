"""A tiny dataset of the real format, made without a simulator, and recording of fake demonstrations."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_data._demonstrate import Demonstration, DemonstrationJob

SIZE = 32
CAMERAS = ("left", "right")


def _spec() -> RobotSpec:
    return RobotSpec(
        ObservationSpec(
            tuple(CameraSpec(name, SIZE, SIZE) for name in CAMERAS),
            (GroupSpec("position", 2, "m"), GroupSpec("gripper", 1, "m", gripper="open_positive")),
        ),
        ActionSpec((GroupSpec("position", 2, "m", representation="delta"),), 1, 20.0),
        embodiment="toy",
    )


def _demonstration(index: int, frames: int) -> Demonstration:
    rng = np.random.default_rng(index)
    yy, xx = np.mgrid[0:SIZE, 0:SIZE]
    columns = {
        "action": rng.standard_normal((frames, 2)).astype(np.float32),
        "observation.state": rng.standard_normal((frames, 3)).astype(np.float32),
    }
    for c, name in enumerate(CAMERAS):
        # Smooth images that drift from frame to frame, so that a wrong frame is far off after h264.
        phase = np.arange(frames)[:, None, None] * 0.5 + index
        grey = 127 + 100 * np.sin(0.2 * xx[None] + 0.15 * (c + 1) * yy[None] + phase)
        columns[f"observation.images.{name}"] = np.repeat(grey[..., None], 3, -1).astype(np.uint8)
        columns[f"observation.intrinsics.{name}"] = rng.random((frames, 3, 3)).astype(np.float32)
        columns[f"observation.extrinsics.{name}"] = rng.random((frames, 4, 4)).astype(np.float32)
        columns[f"observation.depth.{name}"] = rng.random((frames, SIZE, SIZE)).astype(np.float32)
    job = DemonstrationJob("toy", (("task", "push"),), index, 0.0)
    return Demonstration(job, True, f"push it, way {index % 2}", columns, columns["action"])


@dataclasses.dataclass(frozen=True)
class Toy:
    """A written dataset and what was put in."""

    path: str
    spec: RobotSpec
    demonstrations: tuple[Demonstration, ...]

    def truth(self, key: str) -> np.ndarray:
        """All frames of a feature."""
        return np.concatenate([d.columns[key] for d in self.demonstrations])


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """Scanned videos are remembered under the user's cache directory, which tests leave alone.

    So are tables that lerobot reads; a home may be read-only, too.
    """
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("HF_HOME", str(cache / "huggingface"))
    if "datasets" in sys.modules:  # which looked at it when it was imported
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache / "huggingface" / "datasets"))


@pytest.fixture(scope="session")
def toy_spec() -> RobotSpec:
    return _spec()


@pytest.fixture(scope="session")
def toy_demonstrations() -> tuple[Demonstration, ...]:
    return tuple(_demonstration(i, frames) for i, frames in enumerate((23, 9, 31)))


@pytest.fixture(scope="session")
def toy(tmp_path_factory, toy_spec, toy_demonstrations) -> Toy:
    pytest.importorskip("lerobot")
    from vla_data._lerobot_writer import LeRobotWriter

    root = tmp_path_factory.mktemp("data") / "toy"
    writer = LeRobotWriter(root, toy_spec, toy_demonstrations[0], "toy")
    for demonstration in toy_demonstrations:
        writer.add(demonstration)
    writer.close({})
    return Toy(str(root), toy_spec, toy_demonstrations)


def _clip(file: Path, images: np.ndarray, fps: float, codec: str, gop: int, shift: float) -> None:
    """``images [N, H, W, 3]`` as mp4; every picture is ``shift`` frames late."""
    file.parent.mkdir(parents=True, exist_ok=True)
    encoder, options = {
        "h264": ("libx264", {"crf": "12", "preset": "fast"}),
        "hevc": ("libx265", {"crf": "12", "preset": "fast", "x265-params": "log-level=error"}),
        "av1": ("libsvtav1", {"crf": "18", "preset": "12"}),
    }[codec]
    with av.open(str(file), "w") as container:
        stream = container.add_stream(encoder, rate=round(fps), options={**options, "g": str(gop)})
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000 * round(fps))
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round((i + shift) * 1000), Fraction(1, 1000 * round(fps))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _pictures(frames: int, size: int, seed: int) -> np.ndarray:
    yy, xx = np.mgrid[0:size, 0:size] * (32 / size)
    phase = np.arange(frames)[:, None, None] * 0.5 + seed
    grey = 127 + 100 * np.sin(0.2 * xx[None] + 0.15 * (seed + 1) * yy[None] + phase)
    return np.repeat(grey[..., None], 3, -1).astype(np.uint8)


def _write_lerobot(
    root: Path,
    *,
    version: str = "v3.0",
    codec: str = "h264",
    lengths: Sequence[int] = (12, 7, 15),
    size: int = 64,
    gop: int = 2,
    fps: float = 20,
    cameras: Sequence[str] = ("observation.images.top", "observation.images.wrist"),
    shift: float = 0.0,
    drop: int | None = None,
    columns: dict[str, np.ndarray] | None = None,
    features: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
) -> Path:
    """A LeRobot data set of any version from pyarrow and PyAV alone.

    ``drop`` leaves one frame of each video out; ``columns`` (``[F, D]``) replace state and action.
    """
    total, count = sum(lengths), len(lengths)
    stops = np.cumsum(lengths)
    rng = np.random.default_rng(7)
    values = columns or {
        "observation.state": rng.standard_normal((total, 5)).astype(np.float32),
        "action": rng.standard_normal((total, 4)).astype(np.float32),
    }
    episode = np.repeat(np.arange(count), lengths)
    frame = np.concatenate([np.arange(n) for n in lengths])
    table = pa.table(
        {
            **{k: pa.array(list(v) if v.ndim > 1 else v) for k, v in values.items()},
            "timestamp": (frame / fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": episode,
            "index": np.arange(total),
            "task_index": episode % 2,
        }
    )
    three = version == "v3.0"
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    video = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    if not three:
        data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    table_of = {
        k: {"dtype": str(v.dtype), "shape": list(v.shape[1:]) or [1], "names": None}
        for k, v in values.items()
    }
    names = ["height", "width", "channels"]
    table_of |= {k: {"dtype": "video", "shape": [size, size, 3], "names": names} for k in cameras}
    meta = {
        "codebase_version": version, "fps": fps, "robot_type": "toy", "total_episodes": count,
        "total_frames": total, "chunks_size": 1000, "data_path": data, "video_path": video,
        "features": {**table_of, **(features or {})}, **(info or {}),
    }  # fmt: skip
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(meta))
    keep = [i for i in range(total) if drop is None or i != drop]
    for c, key in enumerate(cameras):
        images = [_pictures(n, size, 3 * e + c) for e, n in enumerate(lengths)]
        where = {"video_key": key, "chunk_index": 0, "file_index": 0, "episode_chunk": 0}
        if three:
            path = root / video.format(**where)
            clip = np.concatenate(images)[keep] if drop is not None else np.concatenate(images)
            _clip(path, clip, fps, codec, gop, shift)
        for e in () if three else range(count):
            _clip(root / video.format(**where, episode_index=e), images[e], fps, codec, gop, shift)
    tasks = ["push it", "pull it"]
    bounds = list(zip(stops - np.array(lengths), stops, strict=True))
    if three:
        (root / data.format(chunk_index=0, file_index=0)).parent.mkdir(parents=True)
        pq.write_table(table, root / data.format(chunk_index=0, file_index=0), row_group_size=10)
        rows: dict[str, Any] = {
            "episode_index": np.arange(count), "length": np.array(lengths),
            "dataset_from_index": stops - np.array(lengths), "dataset_to_index": stops,
            "data/chunk_index": np.zeros(count, int), "data/file_index": np.zeros(count, int),
        }  # fmt: skip
        for key in cameras:
            rows[f"videos/{key}/chunk_index"] = rows[f"videos/{key}/file_index"] = np.zeros(count, int)
            rows[f"videos/{key}/from_timestamp"] = (stops - np.array(lengths)) / fps
            rows[f"videos/{key}/to_timestamp"] = stops / fps
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.table(rows), root / "meta/episodes/chunk-000/file-000.parquet")
        pq.write_table(pa.table({"task_index": [0, 1], "task": tasks}), root / "meta/tasks.parquet")
        return root
    lines = [{"task_index": i, "task": task} for i, task in enumerate(tasks)]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    lines = [{"episode_index": e, "tasks": [tasks[e % 2]], "length": int(n)} for e, n in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for e, (start, stop) in enumerate(bounds):
        path = root / data.format(episode_chunk=0, episode_index=e)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(int(start), int(stop - start)), path)
    return root


@pytest.fixture(scope="session")
def write_lerobot():
    """Writes a small LeRobot data set with real videos; see :func:`_write_lerobot`."""
    return _write_lerobot
