"""Frames of mp4 files with PyAV, a file in one pass. Shapes: N frames, H, W pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vla_data.errors import BadDataError, one_line
from vla_data.formats.colours import in_rgb, odd_colours
from vla_data.formats.tables import unreadable


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


def oddities_of(path: Path) -> Iterator[str]:
    """What is odd about how the pictures of a file are shown, as its first frame says."""
    with open_video(path) as container:
        stream = container.streams.video[0]
        try:
            frame = next(container.decode(stream), None)
        except (av.error.FFmpegError, OSError):
            return  # said by whoever reads it
        if frame is None:
            return
        if degrees := int(frame.rotation):
            yield (
                f"players turn its pictures by {degrees} degrees, and a policy sees them as they are "
                "stored; unless the robot's camera gives them so too, re-encode the video upright"
            )
        for odd in odd_colours(int(frame.colorspace), int(stream.codec_context.color_trc)):
            yield f"{odd}; unless the robot's camera gives them so too, re-encode the video (BT.709)"


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
