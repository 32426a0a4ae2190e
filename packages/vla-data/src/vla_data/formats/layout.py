"""An opened data set of any version: its episodes, and the files that hold them. Shapes: F frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vla_data.errors import BadDataError
from vla_data.formats import features as kinds
from vla_data.formats.tables import column_names, read_table, to_array

SPEC_FILE = "meta/vla_spec.json"


@dataclass(frozen=True)
class Episode:
    """One episode, its frames ``[start, stop)`` in the data set, and where they are stored.

    Args:
        index: its number in the data set.
        start, stop: of its frames; in v3.0 the values of the column ``index``.
        data: its parquet file.
        videos: video feature -> (file, start of the episode in it in seconds, its end or None if unsaid).
        tasks: what its metadata lists as tasks.
        whole: the file holds this episode alone, row by row (v2); else rows are found by ``index``.
        sub_tasks: (first frame, frame after the last, text) of its parts, as GR00T lists them.
    """

    index: int
    start: int
    stop: int
    data: Path
    videos: Mapping[str, tuple[Path, float, float | None]]
    tasks: tuple[str | None, ...] = ()
    whole: bool = False
    sub_tasks: tuple[tuple[int, int, str], ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """An opened dataset's metadata.

    Args:
        root: its directory.
        info: ``meta/info.json``.
        episodes: by position; ``Episode.index`` is ascending.
        tasks: task index -> instruction, None where the file says null.
        tasks_file: where they stand.
        unlisted: video features that the episodes' metadata does not place -> why.
    """

    root: Path
    info: Mapping[str, Any]
    episodes: tuple[Episode, ...]
    tasks: Mapping[int, str | None]
    tasks_file: str
    unlisted: Mapping[str, str] = field(default_factory=dict)

    @property
    def fps(self) -> float:
        return float(self.info["fps"])

    @property
    def features(self) -> kinds.Features:
        features: kinds.Features = self.info["features"]
        return features

    def cameras(self) -> dict[str, str]:
        """Camera name -> feature, in the dataset's order."""
        return {name: key for key, name in kinds.cameras(self.features).items()}

    def extras(self, kind: str) -> dict[str, str]:
        """Camera name -> feature, for ``kind`` in depth, intrinsics, extrinsics (arrays, not pictures)."""
        prefix = f"observation.{kind}."
        return {
            key[len(prefix) :]: key
            for key, f in self.features.items()
            if key.startswith(prefix) and f["dtype"] not in ("video", "image")
        }


@dataclass(frozen=True)
class Numbers:
    """Columns of chosen episodes: ``table`` of F rows, and ``rows [F]``: each row's place in its file."""

    table: pa.Table
    rows: NDArray[np.int64]


def columns_of(layout: Layout) -> list[str]:
    """The columns that the first episode's data file really has."""
    return column_names(layout.episodes[0].data)


def read_columns(
    layout: Layout, episodes: Sequence[Episode], columns: Sequence[str], optional: Sequence[str] = ()
) -> Numbers:
    """The rows of ``episodes`` (in that order); of ``optional`` columns those that are there.

    Raises:
        BadDataError: a file or column that is not there, or rows that the episodes' metadata does not list.
    """
    files: dict[Path, list[int]] = {}
    for i, episode in enumerate(episodes):
        files.setdefault(episode.data, []).append(i)
    tables, rows = [], []
    wanted = list(dict.fromkeys(columns))
    place = np.zeros(len(episodes), np.int64)
    offset = 0
    for file, inside in files.items():
        whole = episodes[inside[0]].whole
        table = read_table(file, [*wanted, *([] if whole else ["index"])], optional)
        find = _Finder(table)
        found = [find.rows(layout, episodes[i]) for i in inside]
        chosen = np.concatenate(found)
        # Most files are wanted as they are: a take would copy every nested value.
        as_is = len(chosen) == len(table) and bool((chosen == np.arange(len(chosen))).all())
        kept = table.select([*wanted, *(n for n in optional if n in table.column_names and n not in wanted)])
        tables.append(kept if as_is else kept.take(pa.array(chosen)))
        rows.append(chosen)
        for i, part in zip(inside, found, strict=True):
            place[i], offset = offset, offset + len(part)
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        what = " ".join(str(error).split())
        raise BadDataError(f"{layout.root}: columns differ between the data files ({what})") from error
    order = np.concatenate([p + np.arange(len(e)) for p, e in zip(place, episodes, strict=True)])
    together = np.concatenate(rows)
    if not np.array_equal(order, np.arange(len(order))):
        table, together = table.take(pa.array(order)), together[order]
    return Numbers(table, together)


class _Finder:
    """Where the frames of episodes are in the ``table`` of their file; its ``index`` is read once."""

    def __init__(self, table: pa.Table) -> None:
        self._length = len(table)
        self._index: NDArray[np.int64] | None = None
        self._order: NDArray[np.int64] | None = None
        if "index" in table.column_names:
            index: NDArray[np.int64] = to_array(table["index"], np.int64).reshape(-1)
            if len(index) > 1 and not (index[1:] > index[:-1]).all():
                self._order = np.argsort(index, kind="stable")
                index = np.take(index, self._order)
            self._index = index

    def rows(self, layout: Layout, episode: Episode) -> NDArray[np.int64]:
        """Of one episode; BadDataError where they are not what the metadata lists."""
        if episode.whole:
            if self._length != len(episode):
                raise BadDataError(
                    f"{episode.data}: {self._length} rows, and episode {episode.index} has {len(episode)} "
                    "frames by its metadata"
                )
            return np.arange(self._length)
        index = self._index
        assert index is not None
        wanted = np.arange(episode.start, episode.stop)
        if not len(index):
            raise BadDataError(f"{episode.data}: holds no rows, and episode {episode.index} should lie there")
        places = np.minimum(np.searchsorted(index, wanted), len(index) - 1)
        if not np.array_equal(index[places], wanted):
            missing = int(wanted[int((index[places] != wanted).argmax())])
            raise BadDataError(
                f"{layout.root}: the data files lack frames that meta/episodes lists ({episode.data} has no "
                f"index {missing} of episode {episode.index})"
            )
        return places if self._order is None else self._order[places]
