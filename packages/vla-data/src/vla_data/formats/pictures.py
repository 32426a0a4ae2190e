"""The pictures of a camera feature, however they are stored: video, bytes in parquet, or files of their own.

Shapes: F frames, H, W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps
from vla_core.types import Image

from vla_data.errors import BadDataError, one_line
from vla_data.formats.cells import CellReader
from vla_data.formats.frame_reader import FrameReader
from vla_data.formats.layout import Episode, Layout
from vla_data.formats.tables import column_names, pointer
from vla_data.formats.video import decode_frames

_FILES = (
    "images/{key}/episode_{episode:06d}/frame_{frame:06d}{suffix}",
    "images/{key}/episode-{episode:06d}/frame-{frame:06d}{suffix}",
)
_SUFFIXES = (".png", ".jpg", ".jpeg")
_DEEP = ("I;16", "I;16B", "I;16L", "I", "F")
"""Pillow's modes whose numbers it would cut off at 255."""


def is_video(layout: Layout, key: str) -> bool:
    """Whether a camera feature is stored as video."""
    return bool(layout.features[key]["dtype"] == "video")


def image_file(root: Path, key: str, episode: int, frame: int) -> Path | None:
    """The file that holds one frame as lerobot names it, or None."""
    for pattern in _FILES:
        for suffix in _SUFFIXES:
            file = root / pattern.format(key=key, episode=episode, frame=frame, suffix=suffix)
            if file.is_file():
                return file
    return None


def absence(layout: Layout, key: str, episodes: Sequence[Episode]) -> str | None:
    """Why a declared camera has no pictures at all, or None where it has some."""
    if key in layout.unlisted:
        return layout.unlisted[key]
    if is_video(layout, key):
        files = [e.videos[key][0] for e in episodes if key in e.videos]
        if not any(file.is_file() for file in files):
            return f"there is no {files[0]}" if files else "no episode has a video of it"
        return None
    first = episodes[0]
    if key in column_names(first.data) or image_file(layout.root, key, first.index, 0):
        return None
    return f"{first.data} has no such column, and there are no files images/{key}/..."


def to_rgb(content: bytes, what: str) -> Image:
    """A coded picture as uint8 RGB ``[H, W, 3]``; BadDataError naming ``what`` where it is none."""
    try:
        with Pillow.open(io.BytesIO(content)) as opened:
            if opened.mode not in _DEEP:
                # As lerobot reads it (through datasets), and as people see it.
                opened.load()
                with suppress(SyntaxError):  # EXIF that is none, and asks for nothing
                    ImageOps.exif_transpose(opened, in_place=True)
                return np.array(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: a PNG whose chunks are damaged
        raise BadDataError(f"{what} is not a readable picture ({one_line(error)})") from error
    raise BadDataError(
        f"{what} is a grey picture of more than 8 bits, which would be cut off at 255: store 8 bits, or flag "
        "the feature as a depth map (info: {is_depth_map: true}), or leave it out (cameras)"
    )


def _cells(_: str, column: pa.ChunkedArray) -> Any:
    return column.combine_chunks()


class Pictures:
    """Random access to the frames of a data set's cameras. Every process opens files of its own.

    Args:
        layout: the data set.
    """

    def __init__(self, layout: Layout) -> None:
        self.root = layout.root
        self._layout = layout
        self._frames = FrameReader(layout.fps)
        self._in_table: dict[str, bool] = {}
        self._bytes: CellReader[pa.Scalar] = CellReader(_cells)

    def read(self, key: str, episode: Episode, frame: int, row: int) -> Image:
        """Frame ``frame`` of an episode, which stands in ``row`` of its data file: uint8 RGB ``[H, W, 3]``.

        Raises:
            BadDataError: it is not there, or unreadable.
        """
        if is_video(self._layout, key):
            path, start = self._place(key, episode)
            return self._frames.read(path, start + frame)
        if key not in self._in_table:
            self._in_table[key] = key in column_names(episode.data)
        if self._in_table[key]:
            return self._embedded(key, episode, row)
        file = image_file(self._layout.root, key, episode.index, frame)
        if file is None:
            raise BadDataError(f"'{key}' has no picture of this frame (images/{key}/...)")
        return to_rgb(_content(file), str(file))

    def _place(self, key: str, episode: Episode) -> tuple[Path, int]:
        if key not in episode.videos:
            raise BadDataError(f"'{key}' has no video of this episode")
        path, start, _ = episode.videos[key]
        return path, round(start * self._layout.fps)

    def _embedded(self, key: str, episode: Episode, row: int) -> Image:
        value: Any = self._bytes.read(episode.data, key, row).as_py()
        what = f"{episode.data}: '{key}' in row {row}"
        content, name = coded(self._layout.root, episode.data, value, what)
        return to_rgb(content, name or what)

    def read_all(
        self,
        key: str,
        episodes: Sequence[Episode],
        kept: Sequence[NDArray[np.int64]],
        rows: NDArray[np.int64],
        size: tuple[int, int],
    ) -> NDArray[np.uint8]:
        """The ``kept`` frames of each of ``episodes`` ``[F, H, W, 3]``, each file decoded once."""
        out = np.empty((len(rows), *size, 3), np.uint8)
        first = np.cumsum([0, *(len(k) for k in kept)])
        if not is_video(self._layout, key):
            for episode, frames, start in zip(episodes, kept, first, strict=False):
                for i, frame in enumerate(frames, start):
                    out[i] = of_size(self.read(key, episode, int(frame), int(rows[i])), size, key)
            return out
        files: dict[Path, tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]] = {}
        for episode, frames, start in zip(episodes, kept, first, strict=False):
            path, number = self._place(key, episode)
            numbers, places = files.setdefault(path, ([], []))
            numbers.append(number + frames)
            places.append(start + np.arange(len(frames)))
        for path, (numbers, places) in files.items():
            place = np.concatenate(places)

            def store(i: int, image: Image, place: NDArray[np.int64] = place) -> None:
                out[place[i]] = of_size(image, size, key)

            decode_frames(path, np.concatenate(numbers), self._layout.fps, store)
        return out


def of_size(image: Image, size: tuple[int, int], key: str) -> Image:
    """``image``, of the (H, W) that all pictures of feature ``key`` have; BadDataError where it is not."""
    if image.shape[:2] != size:
        raise BadDataError(
            f"'{key}' has a picture of {image.shape[1]} x {image.shape[0]} here, and others of {size[1]} x "
            f"{size[0]}; a camera has one size: leave such episodes out"
        )
    return image


def coded(root: Path, data: Path, value: Any, what: str) -> tuple[bytes, str | None]:
    """The coded picture of a cell, and the file that the cell names (None: the bytes are in the cell).

    Args:
        root, data: the data set and the parquet file, beside which a named file may lie.
        value: the cell: bytes, a path, or a mapping with ``bytes`` or ``path``.
        what: the cell's name in errors.

    Raises:
        BadDataError: it holds neither, or there is no such file.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value, None
    if not isinstance(value, str):
        raise BadDataError(f"{what} holds no picture ({type(value).__name__})")
    for base in (root, data.parent):
        if (base / value).is_file():
            return _content(base / value), str(base / value)
    raise BadDataError(f"{what} names the file {value}, which is not there")


def _content(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadDataError(f"{file}: not readable ({one_line(error)})") from error
    problem = pointer(file)
    if problem:
        raise BadDataError(f"{file}: {problem}")
    return content
