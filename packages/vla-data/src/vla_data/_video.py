"""Frames of mp4 files with PyAV: one at a time or a file in one pass. Shapes: N frames, H, W pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vla_data._process import PerProcess
from vla_data.errors import BadDataError

Frames = NDArray[np.uint8]
_MOST_OPEN = 16  # containers kept open per process


def _open(path: Path) -> Any:
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise BadDataError(f"{path}: not a readable video ({error})") from error


def _number(frame: Any, fps: float) -> int:
    """Index of a frame in its file, from its time stamp."""
    return round(float(frame.pts * frame.time_base) * fps)


def decode_frames(
    path: Path, wanted: NDArray[np.int64], fps: float, store: Callable[[int, Any], None]
) -> None:
    """Decode ``path`` once, in order, and call ``store(i, image)`` for the frame ``wanted[i]``.

    Raises:
        BadDataError: unreadable, or it lacks a wanted frame.
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
    raise BadDataError(f"{path}: lacks frame {min(places)} (at {fps} Hz) which the dataset lists")


class FrameReader:
    """Random access to frames. Every process opens files of its own; pickles without them."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._open: PerProcess[OrderedDict[Path, Any]] = PerProcess(OrderedDict)

    def _container(self, path: Path) -> Any:
        files = self._open.get()
        if path in files:
            files.move_to_end(path)
        else:
            while len(files) >= _MOST_OPEN:
                files.popitem(last=False)[1].close()
            files[path] = _open(path)
        return files[path]

    def read(self, path: Path, number: int) -> Frames:
        """Frame ``number`` of ``path``: uint8 RGB ``[H, W, 3]``.

        Raises:
            BadDataError: unreadable, or there is no such frame.
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
        raise BadDataError(f"{path}: lacks frame {number} (at {self._fps} Hz) which the dataset lists")
