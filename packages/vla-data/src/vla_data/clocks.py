"""Which frame a row is, and how long a step takes: the columns that count against the metadata.

Shapes: F frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vla_data.errors import BadDataError
from vla_data.formats.info import FILE
from vla_data.formats.layout import Episode, Layout
from vla_data.formats.tables import to_array, vector_problem
from vla_data.formats.video_checks import Surplus
from vla_data.robot.vectors import Place

COLUMNS = ("episode_index", "frame_index", "timestamp")
RATE = 0.1
"""Clocks of hardware jitter; a median step that is off by a larger share is another rate."""


@dataclass(frozen=True)
class Oddity:
    """Rows that are not what the metadata lists.

    Args:
        row: the first of them.
        text: what is wrong, after the name of that row.
        refused: the rows are certainly other frames than they would be taken for.
        counts: ``frame_index`` leaves out frames, which may still be in the videos.
    """

    row: int
    text: str
    refused: bool = False
    counts: bool = False


def read_counters(table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Those of :data:`COLUMNS` that ``table`` has as numbers: ``[F]`` each."""
    found: dict[str, NDArray[np.float64]] = {}
    for key in COLUMNS:
        if key in table.column_names and len(table) and vector_problem(table[key]) is None:
            values = to_array(table[key], np.float64)
            if values.size == len(table):
                found[key] = values.reshape(-1)
    return found


def oddities(
    layout: Layout, episodes: Sequence[Episode], counters: Mapping[str, NDArray[np.float64]]
) -> Iterator[Oddity]:
    """At most one of each kind, about the rows of ``episodes`` in that order."""
    lengths = np.array([len(e) for e in episodes])
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    count = np.arange(len(starts)) - starts
    inside = starts[1:] == starts[:-1]
    owner = counters.get("episode_index")
    if owner is not None:
        other = owner != np.repeat([e.index for e in episodes], lengths)
        if other.any():
            row = int(other.argmax())
            # In v2 the file says whose rows they are; in v3 nothing else does.
            found = f"the row belongs to another episode by its episode_index ({owner[row]:g})"
            yield Oddity(row, found, refused=not episodes[0].whole)
    frame = counters.get("frame_index")
    if frame is not None:
        back = np.flatnonzero(inside & (np.diff(frame) < 0))
        odd = frame != count
        if len(back):
            at = int(back[0])
            yield Oddity(
                at + 1,
                f"frame_index goes back from {frame[at]:g} to {frame[at + 1]:g}: the rows are not in the "
                "order of time; sort them",
                refused=True,
            )
        elif odd.any():
            row = int(odd.argmax())
            yield Oddity(row, f"frame_index does not count from 0 on ({frame[row]:g})", counts=True)
    if "timestamp" in counters:
        yield from _rate(layout, counters["timestamp"], inside)


def _rate(layout: Layout, stamps: NDArray[np.float64], inside: NDArray[np.bool_]) -> Iterator[Oddity]:
    steps = np.diff(stamps)
    stuck = inside & ~(steps > 0)
    if stuck.any():
        yield Oddity(int(stuck.argmax()) + 1, "timestamp does not increase")
    elif inside.any():
        median = float(np.median(steps[inside]))
        # Counted on over all episodes as float32, steps are as coarse as the largest of them.
        coarse = float(np.spacing(np.float32(stamps.max())))
        if abs(median - 1 / layout.fps) > RATE / layout.fps + coarse:
            said = f"timestamps come at {1 / median:.4g} Hz, {FILE} says {layout.fps:g} Hz"
            yield Oddity(
                0, f"{said}; a policy's steps are of {layout.fps:g} Hz unless fps is corrected there"
            )


def check_counters(
    layout: Layout,
    episodes: Sequence[Episode],
    table: pa.Table,
    place: Place,
    surplus: Mapping[Path, Surplus] = MappingProxyType({}),
) -> tuple[str, ...]:
    """What to say of rows that are odd, a line each.

    Args:
        layout, episodes, table: the rows of ``episodes`` in that order.
        place: names a row.
        surplus: videos with more frames than the metadata lists, and how many.

    Raises:
        BadDataError: rows of another episode, or in another order, or of other moments than their pictures.
    """
    counters, said = read_counters(table), []
    for odd in oddities(layout, episodes, counters):
        if odd.refused:
            raise BadDataError(f"{place(odd.row)}: {odd.text}")
        said.append(f"{place(odd.row)}: {odd.text}")
    start = 0
    for episode in episodes if surplus else ():
        own = {key: values[start : start + len(episode)] for key, values in counters.items()}
        left = _left_out(layout, own)
        longer = [
            (file, surplus[file])
            for file, *_ in episode.videos.values()
            if file in surplus and 0 < left <= surplus[file].frames - surplus[file].listed
        ]
        for odd in oddities(layout, [episode], own) if longer else ():
            if odd.counts:
                file, more = longer[0]
                raise BadDataError(
                    f"{place(start + odd.row)}: {odd.text}, and {file} {more}: rows were taken out whose "
                    "pictures are still there, so that later ones would belong to other moments; cut the "
                    "video too"
                )
        start += len(episode)
    return tuple(said)


def _left_out(layout: Layout, counters: Mapping[str, NDArray[np.float64]]) -> int:
    """How many frames the rows of an episode leave out; 0 where their time stamps leave out none."""
    frame, stamps = counters.get("frame_index"), counters.get("timestamp")
    if frame is None:
        return 0
    last = len(frame) - 1
    if stamps is not None and abs(stamps[last] * layout.fps - last) < 0.5:
        return 0  # pictures are found by them elsewhere, and would be the same
    return int(frame[last]) - last
