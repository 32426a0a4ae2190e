"""One video file to another size and a short GOP, with the same time stamps. Shapes: H, W pixels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray
from vla_core.images import resize

from vla_data.errors import BadDataError, one_line
from vla_data.formats.colours import in_rgb
from vla_data.formats.scan import scan
from vla_data.formats.video import open_video

CODEC, PRESET, PIXELS = "h264", "fast", "yuv420p"
TUNE = "fastdecode"
"""Neither arithmetic coding nor deblocking: 1.7 times as quick to decode, in files a third larger."""
_COMPARED = 64
"""Frames of a file that are compared with their originals."""
_WRONG = 30.0
"""A mean difference of 255 that no compression makes: other pictures."""


@dataclass(frozen=True)
class Encoding:
    """Of every new video: size, most frames from one key frame to the next, and x264's rate factor."""

    height: int
    width: int
    gop: int
    crf: int
    interpolation: Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Difference:
    """Sums over the compared pixels."""

    absolute: float = 0.0
    squared: float = 0.0
    count: int = 0

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.absolute + other.absolute, self.squared + other.squared, self.count + other.count
        )


def transcode(source: Path, target: Path, fps: float, encoding: Encoding) -> Difference:
    """Write ``target``, read it again, and say how far its pixels are from the resized originals.

    B-frames are left out, so that a frame needs only those since its key frame.

    Raises:
        BadDataError: ``source`` can't be decoded, or what was written is not what was meant.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = scan(source)
    total = sum(n for _, _, n in facts.stamps)
    every = max(1, total // _COMPARED)
    kept: dict[int, NDArray[np.uint8]] = {}
    with open_video(source) as read, av.open(str(target), "w") as written:
        old = read.streams.video[0]
        old.thread_type = "AUTO"
        new = _stream(written, fps, old.time_base, encoding)
        number = -1
        try:
            for number, frame in enumerate(read.decode(old)):
                picture = resize(
                    in_rgb(frame).to_ndarray(),
                    encoding.height,
                    encoding.width,
                    encoding.interpolation,
                )
                if number % every == 0:
                    kept[number] = picture
                fresh = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                fresh.pts, fresh.time_base = frame.pts, old.time_base
                written.mux(new.encode(fresh))
        except (av.error.FFmpegError, OSError) as error:
            raise BadDataError(
                f"{source}: frame {number + 1} can't be decoded ({one_line(error)})"
            ) from error
        written.mux(new.encode())
    if not np.array_equal(facts.seconds(), scan(target).seconds()):
        raise BadDataError(f"{source}: its time stamps came out different in {target.name}")
    return _compare(source, target, kept)


def _stream(written: Any, fps: float, time_base: Fraction, encoding: Encoding) -> Any:
    options = {"crf": str(encoding.crf), "preset": PRESET, "g": str(encoding.gop), "bf": "0", "tune": TUNE}
    stream = written.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000), options=options)
    stream.height, stream.width, stream.pix_fmt = encoding.height, encoding.width, PIXELS
    stream.codec_context.time_base = time_base
    return stream


def _compare(source: Path, target: Path, kept: dict[int, NDArray[np.uint8]]) -> Difference:
    found = Difference()
    with open_video(target) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number not in kept:
                continue
            apart = in_rgb(frame).to_ndarray().astype(np.float64) - kept[number]
            one = Difference(float(np.abs(apart).sum()), float((apart**2).sum()), apart.size)
            if one.absolute > _WRONG * one.count:
                raise BadDataError(f"{source}: frame {number} came out as another picture in {target.name}")
            found += one
    return found
