"""Frames of mp4 files with PyAV: one at a time or a file in one pass. Shapes: N frames, H, W pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from vla_core.errors import UserError

Frames = NDArray[np.uint8]
_MOST_OPEN = 16  # containers kept open per process


def _open(path: Path) -> Any:
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{path}: not a readable video ({error})") from error


def _number(frame: Any, fps: float) -> int:
    """Index of a frame in its file, from its time stamp."""
    return round(float(frame.pts * frame.time_base) * fps)


def decode_frames(
    path: Path, wanted: NDArray[np.int64], fps: float, store: Callable[[int, Any], None]
) -> None:
    """Decode ``path`` once, in order, and call ``store(i, image)`` for the frame ``wanted[i]``.

    Raises:
        UserError: unreadable, or it lacks a wanted frame.
    """
    places = {int(number): i for i, number in enumerate(wanted)}
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            place = places.pop(_number(frame, fps), None)
            if place is not None:
                store(place, frame.to_ndarray(format="rgb24"))
            if not places:
                return
    raise UserError(f"{path}: lacks frame {min(places)} (at {fps} Hz) which the dataset lists")


class FrameReader:
    """Random access to frames. Keeps files open per process; pickles without them."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._open: OrderedDict[Path, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_fps": self._fps, "_open": OrderedDict()}

    def _container(self, path: Path) -> Any:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            while len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = _open(path)
        return self._open[path]

    def read(self, path: Path, number: int) -> Frames:
        """Frame ``number`` of ``path``: uint8 RGB ``[H, W, 3]``.

        Raises:
            UserError: unreadable, or there is no such frame.
        """
        container = self._container(path)
        stream = container.streams.video[0]
        # Half a frame early: a key frame exactly at the target must not be skipped by rounding.
        target = (number - 0.5) / self._fps / float(stream.time_base)
        container.seek(max(0, int(target)), backward=True, any_frame=False, stream=stream)
        for frame in container.decode(stream):
            found = _number(frame, self._fps)
            if found == number:
                return frame.to_ndarray(format="rgb24")
            if found > number:
                break
        raise UserError(f"{path}: lacks frame {number} (at {self._fps} Hz) which the dataset lists")
