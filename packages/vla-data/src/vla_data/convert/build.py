"""A v2.0 or v2.1 data set to v3.0, which appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from vla_core.errors import ConfigError, UserError
from vla_core.ranges import Count, check_ranges

from vla_data.convert.columns import Columns, episode_rows, plan_columns
from vla_data.convert.meta import STATS, EpisodeTable, Tasks, recorded_stats, write_info
from vla_data.convert.numbers import Stats, Total, column_stats, kept_stats, picture_stats
from vla_data.convert.videos import Place, VideoJoiner
from vla_data.errors import BadDataError
from vla_data.formats.features import is_depth
from vla_data.formats.info import version
from vla_data.formats.layout import Episode, Layout
from vla_data.formats.opening import open_layout
from vla_data.formats.pictures import Pictures, absence, is_video
from vla_data.formats.v3 import DATA, VIDEO
from vla_data.formats.video_checks import check_videos, scan_videos, surplus

_SAMPLED = 8
"""Pictures of an episode that statistics are taken from where the source has none."""
_CHUNK = 1000
_SHOWN = 5
"""Lines about odd rows."""
_OLD = ("info.json", "episodes.jsonl", "episodes_stats.jsonl", "tasks.jsonl", "stats.json")


@dataclass(frozen=True)
class ConvertConfig:
    """How large the new files become.

    Args:
        data_mb, video_mb: size after which a new file begins, as lerobot has it.
    """

    data_mb: Count = 100
    video_mb: Count = 200

    def __post_init__(self) -> None:
        check_ranges(self, "--")


@dataclass(frozen=True)
class ConvertReport:
    """What came out.

    Args:
        source: the version that was read.
        episodes, frames: how many.
        videos: files of all cameras, before and after.
        remarks: what a user should know, a line each.
    """

    source: str
    episodes: int
    frames: int
    videos: tuple[int, int]
    remarks: tuple[str, ...]


def convert(
    path: str | Path,
    out: Path,
    config: ConvertConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ConvertReport:
    """Write the v2.0 or v2.1 data set at ``path`` as v3.0 to ``out``.

    Every number, task and picture stays what it is: videos are joined without being coded again, pictures
    in files or parquet are embedded as they are coded. Episodes and frames are counted anew from 0. Files
    in ``meta/`` that v3.0 has no place for (``modality.json``) are carried over. It is made beside ``out``,
    the new videos are checked and compared with the old, and then it is renamed.

    Args:
        progress: called with the number of finished episodes, and of all.

    Raises:
        UserError: no such data set, one that training would refuse, or ``out`` exists.
        OSError: nothing can be written; nothing is left of it.
    """
    config = config or ConvertConfig()
    layout = open_layout(path)
    said = str(layout.info["codebase_version"])
    if version(layout.info) != 2:
        raise UserError(f"{layout.root}: is LeRobot {said} already; v2.0 and v2.1 are converted")
    if out.exists():
        raise ConfigError(f"DST: {out} exists; name another directory, or remove it")
    if layout.root.resolve() in out.resolve().parents:
        raise ConfigError(f"DST: {out} lies inside of the data set; name a directory elsewhere")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.parent / f".{out.name}.{os.getpid()}"
    try:
        report = _Conversion(layout, draft, config).run(progress)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return report


class _Conversion:
    """One run: reads ``layout``, fills ``draft``."""

    def __init__(self, layout: Layout, draft: Path, config: ConvertConfig) -> None:
        self._layout, self._draft, self._config = layout, draft, config
        pictures = [key for key, f in layout.features.items() if f["dtype"] in ("video", "image")]
        present = [key for key in pictures if absence(layout, key, layout.episodes) is None]
        self._columns: Columns = plan_columns(layout, present)
        self._videos = [key for key in present if is_video(layout, key)]
        self._present = present
        self._facts = scan_videos(layout, self._videos, layout.episodes)
        check_videos(layout, self._facts)
        self._surplus = {f: text for k, facts in self._facts.items() for f, text in surplus(layout, k, facts)}
        self._recorded = recorded_stats(layout)
        self._pictures = Pictures(layout)
        self._odd: list[str] = []
        self._later: dict[str, int] = {}

    def run(self, progress: Callable[[int, int], None]) -> ConvertReport:
        """Write everything and check it."""
        layout, draft = self._layout, self._draft
        shutil.copytree(layout.root / "meta", draft / "meta", ignore=lambda _, names: set(names) & set(_OLD))
        limit = self._config.video_mb << 20
        joiners = {key: VideoJoiner(self._video_path(key), layout.fps, limit) for key in self._videos}
        data, episodes, total = _DataFiles(draft, self._columns, self._config), EpisodeTable(draft), Total()
        tasks = Tasks(layout)
        try:
            for number, episode in enumerate(layout.episodes):
                progress(number, len(layout.episodes))
                task = tasks.index(episode.tasks)
                rows = episode_rows(layout, self._columns, episode, number, task, self._surplus)
                self._odd += rows.odd
                for key in rows.later:
                    self._later.setdefault(key, episode.index)
                places = {
                    key: joiner.add(
                        episode.videos[key][0], len(episode), self._facts[key][episode.videos[key][0]]
                    )
                    for key, joiner in joiners.items()
                }
                stats = column_stats(rows.table) | self._picture_stats(episode)
                for key, values in stats.items():
                    total.add(key, values)
                episodes.add(_row(number, episode, data.add(rows.table), places), stats)
            for joiner in joiners.values():
                joiner.close()
        finally:
            for joiner in joiners.values():
                joiner.abandon()
        data.close()
        episodes.close()
        tasks.write(draft)
        (draft / STATS).write_text(json.dumps(total.result(), indent=4) + "\n", encoding="utf-8")
        sizes = {
            "data_files_size_in_mb": self._config.data_mb, "video_files_size_in_mb": self._config.video_mb
        }  # fmt: skip
        write_info(layout, draft, self._columns, len(tasks.texts), sizes)
        self._check()
        progress(len(layout.episodes), len(layout.episodes))
        old = sum(len(files) for files in self._facts.values())
        new = sum(joiner.files for joiner in joiners.values())
        return ConvertReport(
            str(layout.info["codebase_version"]),
            len(layout.episodes),
            layout.episodes[-1].stop,
            (old, new),
            (*self._columns.remarks, *self._renumbered(), *self._odd_rows(), *self._left_out()),
        )

    def _video_path(self, key: str) -> Callable[[int], Path]:
        return lambda n: self._draft / VIDEO.format(video_key=key, **_numbered(n))

    def _picture_stats(self, episode: Episode) -> dict[str, Stats]:
        kept = self._recorded.get(episode.index, {})
        found: dict[str, Stats] = {}
        for key in self._present:
            if (recorded := kept_stats(kept.get(key))) is not None:
                found[key] = recorded
            elif not is_depth(self._layout.features[key]):
                moments = np.unique(np.linspace(0, len(episode) - 1, _SAMPLED).round().astype(int))
                read = [self._pictures.read(key, episode, int(i), int(i)) for i in moments]
                found[key] = picture_stats(np.stack(read))
        return found

    def _left_out(self) -> list[str]:
        said = [
            f"column '{key}', which episode {index} has and the first has not, is left out"
            for key, index in sorted(self._later.items())
        ]
        if any(episode.sub_tasks for episode in self._layout.episodes):
            said.append("sub_tasks of the episodes (GR00T) are left out: v3.0 has no place for them")
        return said

    def _renumbered(self) -> list[str]:
        known = [e.index for e in self._layout.episodes]
        if known == list(range(len(known))):
            return []
        first = next(i for i, index in enumerate(known) if i != index)
        return [
            f"episodes are counted anew, for v3.0 has no gaps: {known[first]} is {first} now, "
            f"{known[-1]} is {len(known) - 1}"
        ]

    def _odd_rows(self) -> list[str]:
        said = self._odd[:_SHOWN]
        if (more := len(self._odd) - _SHOWN) > 0:
            said.append(f"{more} more lines like these; vla-data doctor SRC has them")
        if any("frame_index" in text for text in self._odd):
            said.append(
                "frame_index is counted anew from 0 in each episode, the rest of the rows is as it was"
            )
        return said

    def _check(self) -> None:
        """That every picture is where the new metadata says, and the first of each episode is the same."""
        new = open_layout(self._draft)
        check_videos(new, scan_videos(new, self._videos, new.episodes))
        pictures = Pictures(new)
        for old, episode in zip(self._layout.episodes, new.episodes, strict=True):
            for key in self._videos:
                before = self._pictures.read(key, old, 0, 0)
                if not np.array_equal(before, pictures.read(key, episode, 0, 0)):
                    raise BadDataError(
                        f"{old.videos[key][0]}: its first picture came out differently in the joined video"
                    )


class _DataFiles:
    """Parquet files of about the wished size, a row group an episode."""

    def __init__(self, draft: Path, columns: Columns, config: ConvertConfig) -> None:
        self._draft, self._schema, self._limit = draft, columns.schema, config.data_mb << 20
        self._writer: pq.ParquetWriter | None = None
        self._number, self._bytes = -1, 0

    def add(self, table: Any) -> int:
        """Append an episode; the number of its file."""
        if self._writer is None or self._bytes + table.nbytes > self._limit:
            self.close()
            self._number, self._bytes = self._number + 1, 0
            file = self._draft / DATA.format(**_numbered(self._number))
            file.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(file, self._schema)
        self._writer.write_table(table)
        self._bytes += table.nbytes
        return self._number

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


def _numbered(number: int) -> dict[str, int]:
    return {"chunk_index": number // _CHUNK, "file_index": number % _CHUNK}


def _row(number: int, episode: Episode, data: int, places: Mapping[str, Place]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "episode_index": number,
        "tasks": [str(text) for text in episode.tasks if text is not None],
        "length": len(episode),
        "dataset_from_index": episode.start,
        "dataset_to_index": episode.stop,
        **{f"data/{name}": value for name, value in _numbered(data).items()},
    }
    for key, place in places.items():
        row |= {f"videos/{key}/{name}": value for name, value in _numbered(place.file).items()}
        row |= {f"videos/{key}/from_timestamp": place.start, f"videos/{key}/to_timestamp": place.stop}
    return row
