"""The LeRobot v3.0 layout on disk: where a frame's numbers and pixels are.

Source: LeRobot dataset format v3.0. Read with pyarrow alone. Shapes: F frames, D dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from vla_core.errors import UserError

from vla_data._names import check_unique, read_json
from vla_data.errors import BadDataError, one_line

SPEC_FILE = "meta/vla_spec.json"
_IMAGES = "observation.images."


@dataclass(frozen=True)
class Episode:
    """One episode: its index, its frames ``[start, stop)`` in the dataset, and where they are stored.

    ``videos`` maps a video feature to (file, start of the episode in it in seconds).
    """

    index: int
    start: int
    stop: int
    data: Path
    videos: Mapping[str, tuple[Path, float]]


@dataclass(frozen=True)
class Layout:
    """An opened dataset's metadata.

    Args:
        root: its directory.
        info: ``meta/info.json``.
        episodes: by position; ``Episode.index`` is ascending.
        tasks: task index -> instruction.
    """

    root: Path
    info: Mapping[str, Any]
    episodes: tuple[Episode, ...]
    tasks: Mapping[int, str]

    @property
    def fps(self) -> float:
        return float(self.info["fps"])

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]:
        features: Mapping[str, Mapping[str, Any]] = self.info["features"]
        return features

    def cameras(self) -> dict[str, str]:
        """Camera name -> video feature, in the dataset's order."""
        return {camera_name(key): key for key, f in self.features.items() if f["dtype"] == "video"}

    def extras(self, kind: str) -> dict[str, str]:
        """Camera name -> feature, for ``kind`` in depth, intrinsics, extrinsics."""
        prefix = f"observation.{kind}."
        return {key[len(prefix) :]: key for key in self.features if key.startswith(prefix)}


def camera_name(feature: str) -> str:
    """``observation.images.top`` -> ``top``; ``observation.image`` -> ``image``."""
    return feature.removeprefix(_IMAGES).removeprefix("observation.")


def _read_table(files: Sequence[Path], columns: Sequence[str] | None = None) -> pa.Table:
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file, columns=None if columns is None else list(columns)))
        except (OSError, pa.ArrowException) as error:
            raise BadDataError(f"{file}: not a readable parquet file ({one_line(error)})") from error
    return pa.concat_tables(tables, promote_options="default")


def _info(root: Path) -> Mapping[str, Any]:
    if not root.is_dir():
        raise UserError(f"{root}: no such dataset directory; record one with vla-data record, or fix 'path'")
    file = root / "meta" / "info.json"
    if not file.is_file():
        raise UserError(f"{root}: no LeRobot dataset (it has no meta/info.json)")
    try:
        info: Mapping[str, Any] = read_json(file, "the info of a LeRobot dataset")
        version = str(info["codebase_version"])
        features, fps = dict(info["features"]), float(info["fps"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: not the info of a LeRobot dataset ({error!r})") from error
    if not 0 < fps < float("inf"):
        raise UserError(f"{file}: fps must be a number above 0, is {info['fps']!r}")
    for key, feature in features.items():
        if not isinstance(feature, Mapping) or "dtype" not in feature or "shape" not in feature:
            raise UserError(f"{file}: feature '{key}' needs a dtype and a shape")
    if version.startswith("v2"):
        raise UserError(
            f"{root}: LeRobot {version} is not read; convert it to v3.0 with "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30"
        )
    if not version.startswith("v3."):
        raise UserError(f"{root}: LeRobot {version} is not known here; v3.0 is")
    return info


def _tasks(root: Path) -> dict[int, str]:
    table = _read_table([root / "meta" / "tasks.parquet"])
    # The sentence is the data frame's index, named or not.
    column = next(name for name in ("task", "__index_level_0__") if name in table.column_names)
    return dict(zip(table["task_index"].to_pylist(), table[column].to_pylist(), strict=True))


def open_layout(path: str | Path) -> Layout:
    """Read the metadata of the dataset at ``path``.

    Raises:
        UserError: no dataset there, or one of another format version.
    """
    root = Path(path).expanduser()
    info = _info(root)
    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    columns = ["episode_index", "dataset_from_index", "dataset_to_index"]
    columns += ["data/chunk_index", "data/file_index"]
    for key in videos:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise UserError(f"{root}: no episodes (meta/episodes is empty)")
    rows = _read_table(files, columns).sort_by("episode_index").to_pylist()
    episodes = tuple(
        Episode(
            index=row["episode_index"],
            start=row["dataset_from_index"],
            stop=row["dataset_to_index"],
            data=root
            / info["data_path"].format(
                chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
            ),
            videos={
                key: (
                    root
                    / info["video_path"].format(
                        video_key=key,
                        chunk_index=row[f"videos/{key}/chunk_index"],
                        file_index=row[f"videos/{key}/file_index"],
                    ),
                    row[f"videos/{key}/from_timestamp"],
                )
                for key in videos
            },
        )
        for row in rows
    )
    layout = Layout(root, info, episodes, _tasks(root))
    check_unique(((camera_name(key), key) for key in videos), root / "meta" / "info.json", "cameras")
    return layout


def to_array(column: pa.ChunkedArray, dtype: type[np.generic]) -> NDArray[Any]:
    """A scalar, list or nested-list column as ``[F]`` or ``[F, D]``."""
    values = column.combine_chunks()
    n = len(values)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    nested = False
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or (
        pa.types.is_fixed_size_list(values.type)
    ):  # fmt: skip
        values, nested = values.flatten(), True
    array = values.to_numpy(zero_copy_only=False).astype(dtype)
    return array.reshape(n, -1) if nested else array


def to_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column as float32 ``[F, D]``; scalars have D = 1."""
    array = to_array(column, np.float32)
    return np.ascontiguousarray(array.reshape(len(array), -1))


def read_columns(layout: Layout, episodes: Sequence[Episode], columns: Sequence[str]) -> pa.Table:
    """The rows of ``episodes`` (in that order) with ``columns`` and ``index``."""
    files = list(dict.fromkeys(e.data for e in episodes))
    table = _read_table(files, [*columns, "index"])
    index = to_array(table["index"], np.int64)
    order = np.argsort(index, kind="stable")
    wanted = np.concatenate([np.arange(e.start, e.stop) for e in episodes])
    rows = np.minimum(np.searchsorted(index[order], wanted), len(index) - 1)
    rows = order[rows]
    if not np.array_equal(index[rows], wanted):
        raise UserError(f"{layout.root}: the data files lack frames that meta/episodes lists")
    return table.take(pa.array(rows))
