"""A data set examined whole: every file opened, every frame decoded, everything that is wrong listed.

Opening a source stops at the first mistake; this goes on. Shapes: F frames, D dims.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from vla_core.errors import UserError

from vla_data.clocks import COLUMNS, oddities, read_counters
from vla_data.errors import BadDataError
from vla_data.formats import features
from vla_data.formats.depth import depth_of_cameras
from vla_data.formats.info import FILE
from vla_data.formats.layout import Episode, Layout, columns_of, read_columns
from vla_data.formats.opening import open_layout
from vla_data.formats.pictures import Pictures, is_video
from vla_data.formats.video import decode_whole
from vla_data.formats.video_checks import problems, scan_videos, surplus
from vla_data.frames import names_of, read_frames
from vla_data.inspect import warnings_of
from vla_data.lerobot import LeRobotConfig, LeRobotSource
from vla_data.robot.binding import Binding, bind, declared_cameras

_MOST = 20
"""Findings of one kind that are listed."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (training refuses it or learns from it) or worth knowing."""

    severity: Literal["error", "warning", "fact"]
    text: str


def examine(path: str | Path, robot: str | None = None, decode: bool = True) -> Iterator[Finding]:
    """Everything that is found about a data set, as it is found.

    Args:
        path: the data set.
        robot: YAML file that describes the robot.
        decode: decode every picture (the time of one epoch); else time stamps alone are checked.
    """
    try:
        layout = open_layout(path)
        present, absent = declared_cameras(layout, robot)
    except UserError as error:
        yield Finding("error", str(error))
        return
    frames = sum(len(e) for e in layout.episodes)
    version = layout.info["codebase_version"]
    yield Finding("fact", f"LeRobot {version}, {len(layout.episodes)} episodes, {frames} frames")
    for name, (key, why) in absent.items():
        yield Finding("error", f"camera '{name}' is declared in {FILE} ('{key}') and has no pictures: {why}")
    depth, unread = depth_of_cameras(layout, layout.episodes)
    for key, why in unread.items():
        yield Finding("warning", f"'{key}' holds depth maps that are not read: {why}")
    whole = list(_errors(_numbers(layout, robot, list(present))))
    yield from whole
    maps = [key for key in depth.values() if key in features.depth_pictures(layout.features)]
    pictures = list(_errors(_videos(layout, [*present.values(), *maps], decode)))
    yield from pictures
    for key in present.values():
        facts = scan_videos(layout, [key], layout.episodes).get(key, {})
        yield from _capped(
            Finding("warning", f"{file}: {text}") for file, text in surplus(layout, key, facts)
        )
    if not whole and not pictures and present:
        yield from _contents(layout, robot, list(present))


def _errors(texts: Iterator[str]) -> Iterator[Finding]:
    return _capped(Finding("error", text) for text in texts)


def _capped(findings: Iterator[Finding]) -> Iterator[Finding]:
    severity: Literal["error", "warning", "fact"] = "error"
    count = 0
    for finding in findings:
        count, severity = count + 1, finding.severity
        if count <= _MOST:
            yield finding
    if count > _MOST:
        yield Finding(severity, f"and {count - _MOST} more of that kind")


def _numbers(layout: Layout, robot: str | None, cameras: Sequence[str]) -> Iterator[str]:
    """Parquet files: lengths, vectors, tasks, time stamps; a line for each episode that is wrong."""
    try:
        binding = bind(layout, layout.episodes, robot, cameras or None)
    except UserError as error:
        yield str(error)
        return
    files: dict[Path, list[Episode]] = {}
    for episode in layout.episodes:
        files.setdefault(episode.data, []).append(episode)
    for inside in files.values():
        # A file at once; one episode after another only where something is wrong with one.
        if _reads(layout, inside, binding) is None:
            sound = inside
        else:
            said = {e.index: _reads(layout, [e], binding) for e in inside}
            yield from (text for text in said.values() if text is not None)
            sound = [e for e in inside if said[e.index] is None]
        if sound:
            table, start = read_columns(layout, sound, [], COLUMNS).table, 0
            for episode in sound:
                yield from _clocks(layout, episode, table.slice(start, len(episode)))
                start += len(episode)


def _reads(layout: Layout, episodes: Sequence[Episode], binding: Binding) -> str | None:
    """What is wrong with the numbers of some episodes, or None."""
    try:
        read_frames(layout, episodes, binding, {}, None)
    except UserError as error:
        return str(error)
    return None


def _clocks(layout: Layout, episode: Episode, table: pa.Table) -> Iterator[str]:
    place = names_of(layout, [episode])
    for odd in oddities(layout, [episode], read_counters(table)):
        yield f"{place(odd.row)}: {odd.text}"


def _videos(layout: Layout, keys: Sequence[str], decode: bool) -> Iterator[str]:
    scanned = scan_videos(layout, keys, layout.episodes)
    for key, facts in scanned.items():
        yield from problems(layout, key, facts)
        for file, fact in facts.items() if decode else ():
            if fact.problem is None:
                yield from decode_whole(file, layout.fps)
    pictures = Pictures(layout)
    for key in keys:
        if is_video(layout, key) or features.is_depth(layout.features[key]) or not decode:
            continue
        for episode in layout.episodes:
            yield from _images(layout, pictures, key, episode)


def _images(layout: Layout, pictures: Pictures, key: str, episode: Episode) -> Iterator[str]:
    try:
        rows = read_columns(layout, [episode], columns_of(layout)[-1:]).rows
    except UserError:
        return  # said where the numbers are checked
    for frame, row in enumerate(rows):
        try:
            pictures.read(key, episode, frame, int(row))
        except BadDataError as error:
            yield f"{names_of(layout, [episode])(frame)}: {error}"


def _contents(layout: Layout, robot: str | None, cameras: Sequence[str]) -> Iterator[Finding]:
    """What a trainer should know of data that can be read."""
    try:
        source = LeRobotSource(LeRobotConfig(str(layout.root), tuple(cameras), robot=robot), 1)
    except UserError as error:  # of episodes beside each other, each of which is sound
        yield Finding("error", str(error))
        return
    said = Counter(source.instruction(e) for e in source.lengths())
    words = [len(text.split()) for text in said]
    fewest, most = min(words), max(words)
    long = str(most) if fewest == most else f"{fewest} to {most}"
    yield Finding(
        "fact",
        f"{_counted(len(said), 'instruction')} of {long} word{'' if most == 1 else 's'}; the most frequent "
        f"in {max(said.values())} of {_counted(len(source.lengths()), 'episode')}",
    )
    for text in warnings_of(source):
        yield Finding("warning", text)


def _counted(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"
