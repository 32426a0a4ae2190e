"""Random access to the frames of mp4 files, one file open per process and path. Shapes: H, W pixels.

Where the time goes (two cameras of 256 x 256, h264 with a key frame every ten): nine tenths in the decoder,
which has to go from the key frame to the wanted one. So what can be saved is what is decoded for nobody:
see :attr:`_Opened.reach` and :meth:`_Opened.packets`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vla_data._process import PerProcess
from vla_data.errors import BadDataError, one_line
from vla_data.formats.colours import in_rgb
from vla_data.formats.video import open_video

_MOST_OPEN = 16  # containers kept open per process
_NEAR = 2
"""Frames that are decoded on from the last one read, rather than sought, whatever the key frames."""
_REORDERED = 32
"""Frames to seek earlier where a seek went too far: with B-frames containers seek by the time of decoding,
and a later key frame can be decoded before the wanted frame is shown."""
_MARKED = "h264"
"""The codec that marks, for good, frames that no other one is decoded from. (HEVC's mark holds within one
temporal layer, AV1's decoder takes such a setting at its start alone.)"""


@dataclass
class _Opened:
    """A container, and what is being decoded of it.

    Args:
        container: with pictures in its first video stream.
        ticks: frames a unit of its time stamps.
        marked: the codec marks frames that no other one needs.
        frames: what comes after number ``last``.
        last: number of the last frame read; None: the decoder is anywhere.
        wanted: number of the frame that is looked for.
        reach: most frames that were ever decoded from a key frame to a wanted one. Half of it is what a seek
            costs on average, so a frame that is nearer is reached by going on.
        colours: converts to RGB, with tables that are made once.
    """

    container: Any
    ticks: float
    marked: bool
    frames: Iterator[Any] = field(default_factory=lambda: iter(()))
    last: int | None = None
    wanted: int = 0
    reach: int = 0
    colours: VideoReformatter = field(default_factory=VideoReformatter)

    def number(self, stamped: Any) -> int:
        """Index of a frame or packet in the file, from its time stamp; -1 where it has none."""
        return -1 if stamped.pts is None else round(stamped.pts * self.ticks)

    def near(self, number: int) -> bool:
        """Whether going on is the quickest way to a frame."""
        if self.last is None:
            return False
        return 0 < number - self.last <= max(_NEAR, self.reach // 2)

    def packets(self, stream: Any) -> Iterator[Any]:
        """Frames from here on; those before ``wanted`` that no other frame needs are passed over."""
        context, key, skips = stream.codec_context, 0, False
        if self.marked:
            context.skip_frame = "DEFAULT"  # a seek may have come in the middle of what is passed over
        for packet in self.container.demux(stream):
            number = self.number(packet)
            if packet.is_keyframe:
                key = number
            elif number - key > self.reach:
                self.reach = number - key
            skip = self.marked and 0 <= number < self.wanted
            if skip != skips:
                context.skip_frame, skips = "NONREF" if skip else "DEFAULT", skip
            yield from packet.decode()

    def find(self, number: int) -> Any:
        """The frame, or None where decoding on from here does not come by it."""
        self.wanted = number
        for frame in self.frames:
            found = self.number(frame)
            if found >= number:
                return frame if found == number else None
        return None

    def seek(self, number: int) -> None:
        """Go to the key frame at or before a frame."""
        stream = self.container.streams.video[0]
        # A quarter of a frame late: rounding must not skip a key frame that is the target itself, and
        # the frame after it is still three quarters away.
        self.container.seek(int((number + 0.25) / self.ticks), backward=True, any_frame=False, stream=stream)
        self.frames = self.packets(stream)


class FrameReader:
    """Random access to frames. Every process opens files of its own; pickles without them."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._open: PerProcess[OrderedDict[str, _Opened]] = PerProcess(OrderedDict)

    def _opened(self, path: Path) -> _Opened:
        files, name = self._open.get(), str(path)  # two paths are compared part by part
        if name in files:
            files.move_to_end(name)
        else:
            while len(files) >= _MOST_OPEN:
                files.popitem(last=False)[1].container.close()
            container = open_video(path)
            stream = container.streams.video[0]
            # Decoders with threads of their own (AV1) decode ahead what nobody reads: half of their time.
            stream.codec_context.thread_count = 1
            ticks = float(stream.time_base) * self._fps
            files[name] = _Opened(container, ticks, stream.codec_context.name == _MARKED)
        return files[name]

    def read(self, path: Path, number: int, pixels: str = "rgb24") -> NDArray[Any]:
        """Frame ``number`` of ``path``: uint8 RGB ``[H, W, 3]``, or what FFmpeg calls ``pixels``.

        Frames of one file that are asked for in ascending order are decoded in one pass.

        Raises:
            BadDataError: unreadable, or there is no such frame.
        """
        opened = self._opened(path)
        near, opened.last = opened.near(number), None
        try:
            frame = opened.find(number) if near else None
            for early in (0, _REORDERED, number):
                if frame is None:
                    opened.seek(number - early)
                    frame = opened.find(number)
            if frame is not None:
                opened.last = number
                return _pixels(frame, opened.colours, pixels)
        except (av.error.FFmpegError, OSError) as error:
            # The decoder may be left in the middle of the damage; the next read starts anew.
            self._open.get().pop(str(path)).container.close()
            raise BadDataError(f"{path}: frame {number} can't be decoded ({one_line(error)})") from error
        raise BadDataError(f"{path}: lacks frame {number} (at {self._fps} Hz) which the dataset lists")


def _pixels(frame: Any, colours: VideoReformatter, pixels: str) -> NDArray[Any]:
    """A decoded frame as an array that nobody else writes to."""
    if pixels != "rgb24" or frame.format.name == pixels:
        copied: NDArray[Any] = frame.to_ndarray(format=pixels)
        return copied
    converted = in_rgb(frame, colours)
    plane, width = converted.planes[0], 3 * converted.width
    if plane.line_size != width:  # rows end in padding
        padded: NDArray[Any] = converted.to_ndarray()
        return padded
    # The memory of the conversion itself, which lives as long as the array.
    return np.frombuffer(plane, np.uint8).reshape(converted.height, converted.width, 3)
