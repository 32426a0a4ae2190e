"""The columns of v3.0's data files: of the types that the feature table states, for lerobot casts by it.

Shapes: F frames, D dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vla_data.clocks import check_counters
from vla_data.errors import BadDataError, one_line
from vla_data.formats.layout import Episode, Layout
from vla_data.formats.pictures import coded, image_file
from vla_data.formats.tables import read_table, storage
from vla_data.formats.video_checks import Surplus
from vla_data.frames import names_of

COUNTED = {"timestamp": "float32", **dict.fromkeys(("frame_index", "episode_index", "index"), "int64")}
"""Columns that every v3.0 file has, and their dtypes; with ``task_index``."""
TASK = "task_index"
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Columns:
    """What the rows of the new files hold.

    Args:
        features: the new feature table: what has a column, pictures that are there, and the counted ones.
        kinds: the arrow type of each column.
        remarks: what was left out or added, a line each.
        known: all columns of the first episode, from which this was made.
    """

    features: Mapping[str, Mapping[str, Any]]
    kinds: Mapping[str, pa.DataType]
    remarks: tuple[str, ...]
    known: frozenset[str]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(list(self.kinds.items()))


def plan_columns(layout: Layout, cameras: Sequence[str]) -> Columns:
    """What to write, from the feature table and the first episode's file.

    Args:
        layout: the data set.
        cameras: features of pictures that are there.
    """
    first = layout.episodes[0]
    held = read_table(first.data)
    features: dict[str, Mapping[str, Any]] = {}
    kinds: dict[str, pa.DataType] = {}
    remarks: list[str] = []
    for key, feature in layout.features.items():
        if key in COUNTED or key == TASK:
            continue
        if feature["dtype"] in ("video", "image"):
            if key not in cameras:
                remarks.append(f"'{key}' is declared and has no pictures: left out")
                continue
            if feature["dtype"] == "image":
                kinds[key] = _PICTURE
        elif key not in held.column_names:
            remarks.append(f"'{key}' is declared and has no column: left out")
            continue
        else:
            kinds[key] = _declared(key, feature, held.schema.field(key).type)
        features[key] = feature
    for key in held.column_names:
        if key in layout.features or key in COUNTED or key == TASK:
            continue
        described = _described(held[key])
        if described is None:
            remarks.append(f"column '{key}' holds {held[key].type}, which v3.0 has no feature for: left out")
            continue
        features[key] = described
        kinds[key] = _declared(key, described, held.schema.field(key).type)
        remarks.append(f"column '{key}' was in no feature table: added to it")
    for key, dtype in {**COUNTED, TASK: "int64"}.items():
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
        kinds[key] = pa.type_for_alias(dtype)
    return Columns(features, kinds, tuple(remarks), frozenset(held.column_names))


@dataclass(frozen=True)
class Rows:
    """The rows of one episode as v3.0 has them.

    Args:
        table: they.
        odd: what is odd about them, a line each.
        later: columns that the first episode does not have, which are left out.
    """

    table: pa.Table
    odd: tuple[str, ...]
    later: frozenset[str]


def _declared(key: str, feature: Mapping[str, Any], held: pa.DataType) -> pa.DataType:
    shape = feature["shape"] if isinstance(feature["shape"], list) else [feature["shape"]]
    try:
        value = pa.type_for_alias(str(feature["dtype"]))
    except ValueError as error:
        raise BadDataError(f"feature '{key}' has the unknown dtype '{feature['dtype']}'") from error
    if list(shape) in ([], [1]):
        return value
    if len(shape) == 1:
        return pa.list_(value, shape[0])
    return storage(held)  # matrices: as they are


def _described(column: pa.ChunkedArray) -> dict[str, Any] | None:
    """The feature of a column that no table names, by its first cell; None: there is no such feature."""
    kind = storage(column.type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return {"dtype": "string", "shape": [1], "names": None}
    cell: Any = column[0].as_py()
    try:
        shape = np.asarray(cell).shape
    except ValueError:
        return None  # ragged
    while pa.types.is_nested(kind) and kind.num_fields == 1:
        kind = kind.field(0).type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not number or cell is None:
        return None
    return {"dtype": "bool" if pa.types.is_boolean(kind) else str(kind), "shape": list(shape) or [1],
            "names": None}  # fmt: skip


def episode_rows(
    layout: Layout,
    columns: Columns,
    episode: Episode,
    number: int,
    task: int,
    surplus: Mapping[Path, Surplus],
) -> Rows:
    """The rows of one episode.

    Args:
        layout, columns: what is converted.
        episode: as it was.
        number: its new index, with its place ``episode.start`` in the whole.
        task: the task of frames that name none.
        surplus: videos with more frames than the metadata lists, and how many.

    Raises:
        BadDataError: a column that other episodes have, or one that does not fit its feature; rows that are
            not the frames of their videos.
    """
    held = read_table(episode.data)
    frames = len(episode)
    if len(held) != frames:
        raise BadDataError(
            f"{episode.data}: {len(held)} rows, and episode {episode.index} has {frames} frames by its "
            "metadata"
        )
    # They are counted anew: what they said would be lost.
    odd = check_counters(layout, [episode], held, names_of(layout, [episode]), surplus)
    count = np.arange(frames)
    made = {
        "timestamp": (count / layout.fps).astype(np.float32), "frame_index": count,
        "episode_index": np.full(frames, number), "index": episode.start + count,
        TASK: np.full(frames, task),
    }  # fmt: skip
    found = {}
    for key, kind in columns.kinds.items():
        kept = key in held.column_names and key not in ("frame_index", "episode_index", "index")
        if kind == _PICTURE:
            found[key] = _pictures(layout, key, episode, held)
        elif kept:
            found[key] = _cast(held[key], kind, f"{episode.data}: '{key}'")
        elif key in made:
            found[key] = pa.array(made[key], kind)
        else:
            raise BadDataError(f"{episode.data}: has no column '{key}', which other episodes have")
    later = frozenset(held.column_names) - columns.known - columns.kinds.keys()
    return Rows(pa.table(found, columns.schema), odd, later)


def _cast(column: pa.ChunkedArray, kind: pa.DataType, what: str) -> pa.Array:
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    try:
        if not pa.types.is_nested(kind) and pa.types.is_nested(values.type):
            values = values.cast(pa.list_(values.type.value_type, 1)).flatten()
        return values.cast(kind)
    except (pa.ArrowException, AttributeError) as error:
        raise BadDataError(
            f"{what} does not fit its feature in meta/info.json ({one_line(error)})"
        ) from error


def _pictures(layout: Layout, key: str, episode: Episode, held: pa.Table) -> pa.Array:
    """Coded pictures as bytes, wherever they lie."""
    cells = held[key].to_pylist() if key in held.column_names else [None] * len(episode)
    found = []
    for frame, cell in enumerate(cells):
        what = f"{episode.data}: '{key}' in row {frame}"
        if cell is None:
            file = image_file(layout.root, key, episode.index, frame)
            if file is None:
                raise BadDataError(f"{what} has no picture")
            cell = str(file)
        content, name = coded(layout.root, episode.data, cell, what)
        found.append({"bytes": content, "path": name or f"frame-{frame:06d}.png"})
    return pa.array(found, _PICTURE)
