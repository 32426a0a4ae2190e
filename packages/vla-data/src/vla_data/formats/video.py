"""Frames of mp4 files with PyAV, a file in one pass. Shapes: N frames, H, W pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from numpy.typing import NDArray

from vla_data.errors import BadDataError, one_line
from vla_data.formats.tables import unreadable

_MATRICES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 7: Colorspace.SMPTE240M}
"""Codes of ISO/IEC 23001-8 for colour matrices other than BT.601's (5 and 6) and none (2)."""


def open_video(path: Path) -> Any:
    """An opened container with pictures; BadDataError where there is none."""
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise unreadable(path, "video", error) from error
    if not container.streams.video:
        container.close()
        raise BadDataError(f"{path}: not a readable video (it holds no pictures)")
    return container


def in_rgb(frame: Any, colours: VideoReformatter | None = None) -> Any:
    """A decoded frame in the format ``rgb24``, by the colour matrix that its file states.

    FFmpeg's conversion takes BT.601's unless it is told, which what says nothing has here too.
    """
    convert = frame.reformat if colours is None else partial(colours.reformat, frame)
    matrix = _MATRICES.get(int(frame.colorspace))
    if matrix is None:
        return convert(format="rgb24")
    return convert(format="rgb24", src_colorspace=matrix, dst_colorspace=Colorspace.ITU601)


def rotation(path: Path) -> int:
    """By how many degrees players turn the pictures of a file, as its first frame says."""
    with open_video(path) as container:
        try:
            frame = next(container.decode(video=0), None)
        except (av.error.FFmpegError, OSError):
            return 0  # said by whoever reads it
    return 0 if frame is None else int(frame.rotation)


def _number(frame: Any, fps: float) -> int:
    """Index of a frame or packet in its file, from its time stamp; -1 where it has none."""
    if frame.pts is None:
        return -1
    return round(float(frame.pts * frame.time_base) * fps)


def decode_frames(
    path: Path, wanted: NDArray[np.int64], fps: float, store: Callable[[int, Any], None]
) -> None:
    """Decode ``path`` once, in order, and call ``store(i, image)`` for the frame ``wanted[i]``.

    Raises:
        BadDataError: unreadable, or it lacks a wanted frame.
    """
    places = {int(number): i for i, number in enumerate(wanted)}
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            for frame in container.decode(stream):
                place = places.pop(_number(frame, fps), None)
                if place is not None:
                    store(place, in_rgb(frame).to_ndarray())
                if not places:
                    return
        except (av.error.FFmpegError, OSError) as error:
            raise BadDataError(f"{path}: frame {min(places)} can't be decoded ({one_line(error)})") from error
    raise BadDataError(f"{path}: lacks frame {min(places)} (at {fps} Hz) which the dataset lists")


def decode_whole(path: Path, fps: float) -> Iterator[str]:
    """Decode every frame of ``path`` and say which cannot be, or come out damaged; nothing if all is well."""
    wrong: dict[int, str] = {}
    count = 0
    try:
        with open_video(path) as container:
            stream = container.streams.video[0]
            # Else a decoder hides what it cannot read behind what it read before.
            stream.codec_context.options = {"err_detect": "explode"}
            for packet in container.demux(stream):
                count += packet.pts is not None
                try:
                    for frame in packet.decode():
                        if frame.is_corrupt:
                            wrong.setdefault(_number(frame, fps), "it comes out damaged")
                except (av.error.FFmpegError, OSError) as error:
                    wrong.setdefault(_number(packet, fps), one_line(error))
    except (av.error.FFmpegError, OSError) as error:
        wrong.setdefault(count, one_line(error))
    except BadDataError as error:
        yield str(error)
    if wrong:
        first, last = min(wrong), max(wrong)
        which = f"frame {first}" if first == last else f"{len(wrong)} frames, from {first} to {last},"
        yield f"{path}: {which} can't be decoded ({wrong[first]})"
