"""``meta/info.json``: what a data set says of itself, checked once so that nobody else has to.

Source: LeRobot's formats v2.0, v2.1 and v3.0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_core.errors import UserError

from vla_data._names import read_json

FILE = "meta/info.json"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def find(path: str | Path) -> Path:
    """The directory of a data set: a path, or a hub id that lies in a local cache of lerobot or the hub.

    Raises:
        UserError: there is none. Nothing is downloaded.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        return root
    name = str(path)
    if root.exists():
        raise UserError(f"{root}: a data set is a directory, this is a file")
    if _REPOSITORY.fullmatch(name):
        for place in _cached(name):
            if (place / FILE).is_file():
                return place
        raise UserError(
            f"{name}: no such directory, and no local copy of a hub data set of that name; download it "
            f"first (hf download --repo-type dataset {name} --local-dir DIR) and give DIR as 'path'"
        )
    raise UserError(f"{root}: no such dataset directory; record one with vla-data record, or fix 'path'")


def _cached(name: str) -> list[Path]:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    lerobot = Path(os.environ.get("HF_LEROBOT_HOME") or home / "lerobot").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    places = [lerobot / name]
    for above in (hub, lerobot / "hub"):
        snapshots = above / f"datasets--{name.replace('/', '--')}"
        head = snapshots / "refs" / "main"
        if head.is_file():
            places.append(snapshots / "snapshots" / head.read_text("utf-8").strip())
    return places


def read_info(root: Path) -> Mapping[str, Any]:
    """The content of ``info.json`` with a known version, a rate above 0 and features of dtype and shape.

    Raises:
        UserError: what is missing or wrong.
    """
    file = root / FILE
    if not file.is_file():
        raise UserError(f"{root}: no LeRobot dataset (it has no {FILE})")
    info = read_json(file, "the info of a LeRobot dataset")
    if not isinstance(info, Mapping):
        raise UserError(f"{file}: not the info of a LeRobot dataset (it holds {_kind(info)}, not a mapping)")
    missing = [key for key in ("codebase_version", "features", "fps") if key not in info]
    if missing:
        raise UserError(f"{file}: not the info of a LeRobot dataset (no '{missing[0]}')")
    _check_rate(info["fps"], file)
    _check_features(info["features"], file)
    version = str(info["codebase_version"])
    if not re.fullmatch(r"v?(2\.[01]|3\.\d+)", version):
        raise UserError(f"{file}: LeRobot {version} is not known here; v2.0, v2.1 and v3.0 are")
    return info


def version(info: Mapping[str, Any]) -> int:
    """2 or 3."""
    return int(str(info["codebase_version"]).removeprefix("v")[0])


def _kind(value: Any) -> str:
    return {"list": "a list", "str": "text", "NoneType": "null"}.get(type(value).__name__, repr(value))


def _check_rate(fps: Any, file: Path) -> None:
    number = isinstance(fps, (int, float)) and not isinstance(fps, bool)
    if not number or not 0 < fps < float("inf"):
        raise UserError(f"{file}: fps must be a number above 0, is {fps!r}")


def _check_features(features: Any, file: Path) -> None:
    if not isinstance(features, Mapping) or not features:
        raise UserError(f"{file}: 'features' must name what is recorded, is {_kind(features)}")
    for key, feature in features.items():
        if not isinstance(feature, Mapping) or "dtype" not in feature or "shape" not in feature:
            raise UserError(f"{file}: feature '{key}' needs a dtype and a shape")
        shape = feature["shape"]
        sizes = [shape] if isinstance(shape, int) else shape
        if not isinstance(sizes, list) or not all(isinstance(n, int) and n >= 0 for n in sizes):
            raise UserError(f"{file}: the shape of feature '{key}' must be a list of sizes, is {shape!r}")


class Paths:
    """The files of episodes, by the templates of ``info.json``.

    In the wild a template says ``chunk-{episode_index:03d}`` where the files lie in chunks of many episodes:
    where it names no file that is there, the chunk of the episode is tried instead.

    Args:
        root: the data set.
        info: its info.
        data, video: the templates where the info has none.
    """

    def __init__(self, root: Path, info: Mapping[str, Any], data: str, video: str) -> None:
        self._root = root
        self._file = root / FILE
        self._templates = {
            "data_path": str(info.get("data_path") or data),
            "video_path": str(info.get("video_path") or video),
        }
        size = info.get("chunks_size")
        self._chunk = size if isinstance(size, int) and size > 0 else 1000

    def data(self, episode: int, **fields: Any) -> Path:
        """The parquet file of an episode (by index), or of given chunk and file."""
        return self._path("data_path", episode, {**fields, "video_key": ""})

    def video(self, episode: int, key: str, **fields: Any) -> Path:
        """The video of a feature."""
        return self._path("video_path", episode, {**fields, "video_key": key})

    def _path(self, which: str, episode: int, fields: Mapping[str, Any]) -> Path:
        chunk = episode // self._chunk
        values = {
            "episode_index": episode, "episode_chunk": chunk, "chunk_index": chunk, "file_index": 0,
            **fields,
        }  # fmt: skip
        template = self._templates[which]
        try:
            found = self._root / template.format(**values)
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"{self._file}: {which} '{template}' can't be filled in ({error})") from error
        other = template.replace("chunk-{episode_index", "chunk-{episode_chunk")
        if other != template and not found.is_file():
            usual = self._root / other.format(**values)
            return usual if usual.is_file() else found
        return found
