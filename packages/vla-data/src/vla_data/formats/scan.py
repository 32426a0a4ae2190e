"""What is in a video file without decoding it: the time stamps of its packets, read once and kept.

A file whose pictures come late, at another rate or with gaps still decodes, and shows the wrong
moments. Its packets tell in milliseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vla_data.errors import BadDataError, one_line
from vla_data.formats.tables import pointer
from vla_data.formats.video import open_video

_VERSION = 1
_THREADS = 4


@dataclass(frozen=True)
class VideoFacts:
    """A scanned file.

    Args:
        problem: why it is not a whole video; the rest is empty then.
        height, width: of its pictures.
        codec: e.g. ``h264``.
        unit: seconds of a time stamp, as numerator and denominator.
        stamps: of its frames in order, as runs (first, step, count).
    """

    problem: str | None = None
    height: int = 0
    width: int = 0
    codec: str = ""
    unit: tuple[int, int] = (1, 1)
    stamps: tuple[tuple[int, int, int], ...] = ()

    def seconds(self) -> NDArray[np.float64]:
        """Time of each frame."""
        parts = [first + step * np.arange(count) for first, step, count in self.stamps]
        return np.concatenate([np.empty(0), *parts]) * float(Fraction(*self.unit))


def _runs(stamps: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    """Ascending numbers as arithmetic progressions."""
    if len(stamps) < 2:
        return tuple((int(s), 0, 1) for s in stamps)
    steps = np.diff(stamps)
    # A run ends where the step changes; the number there begins the next run.
    runs, start = [], 0
    while start < len(stamps):
        if start == len(stamps) - 1:
            runs.append((int(stamps[start]), 0, 1))
            break
        step = int(steps[start])
        other = np.flatnonzero(steps[start:] != step)
        stop = start + 1 + (int(other[0]) if len(other) else len(steps) - start)
        runs.append((int(stamps[start]), step, stop - start))
        start = stop
    return tuple(runs)


def scan(path: Path) -> VideoFacts:
    """The facts of one file; never raises for what is wrong with it."""
    missing = pointer(path)
    if missing:
        return VideoFacts(missing)
    try:
        container = open_video(path)
    except BadDataError as error:
        return VideoFacts(str(error).removeprefix(f"{path}: "))
    with container:
        stream = container.streams.video[0]
        size, stamps, corrupt = path.stat().st_size, [], False
        try:
            for packet in container.demux(stream):
                if packet.size == 0 and packet.pts is None:
                    continue  # the end
                corrupt |= bool(packet.is_corrupt) or (packet.pos or 0) + packet.size > size
                if packet.pts is None:
                    return VideoFacts("a frame has no time stamp")
                if not packet.is_discard:
                    stamps.append(packet.pts)
        except (av.error.FFmpegError, OSError) as error:
            return VideoFacts(f"ends in the middle of a frame ({one_line(error)})")
        if corrupt or stream.frames > len(stamps):
            return VideoFacts(f"is cut off: {len(stamps)} frames of {stream.frames} are there")
        base = stream.time_base
        return VideoFacts(
            None,
            stream.height,
            stream.width,
            stream.codec_context.name,
            (base.numerator, base.denominator),
            _runs(np.sort(np.array(stamps, np.int64))),
        )


def scan_all(root: Path, files: Iterable[Path]) -> dict[Path, VideoFacts]:
    """The facts of many files of a data set; a file that has not changed is not scanned again."""
    kept = _Kept(root)
    found: dict[Path, VideoFacts] = {}
    new = []
    for file in dict.fromkeys(files):
        known = kept.get(file)
        if known is None:
            new.append(file)
        else:
            found[file] = known
    if new:
        with ThreadPoolExecutor(_THREADS) as pool:
            found.update(zip(new, pool.map(scan, new), strict=True))
        kept.add({file: found[file] for file in new})
    return found


class _Kept:
    """Facts on disk, under the user's cache directory (``XDG_CACHE_HOME``), by size and date of each file."""

    def __init__(self, root: Path) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:24]
        self._file = home / "vla_data" / "videos" / f"{name}.json"
        self._entries: dict[str, Any] = {}
        # A cache that cannot be read is made anew.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self._file.read_text("utf-8"))
            if content["version"] == _VERSION:
                self._entries = dict(content["files"])

    @staticmethod
    def _stamp(file: Path) -> list[int] | None:
        try:
            state = file.stat()
        except OSError:
            return None
        return [state.st_size, state.st_mtime_ns]

    def get(self, file: Path) -> VideoFacts | None:
        entry = self._entries.get(str(file.resolve()))
        if entry is None or entry[0] != self._stamp(file):
            return None
        facts = entry[1]
        stamps = tuple(tuple(run) for run in facts["stamps"])
        return VideoFacts(**{**facts, "unit": tuple(facts["unit"]), "stamps": stamps})

    def add(self, new: Mapping[Path, VideoFacts]) -> None:
        whole = {file: facts for file, facts in new.items() if facts.problem is None}
        for file, facts in whole.items():
            self._entries[str(file.resolve())] = [self._stamp(file), asdict(facts)]
        # Training goes on where nothing can be written.
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps({"version": _VERSION, "files": self._entries}))
            draft.replace(self._file)
