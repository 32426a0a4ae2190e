"""The colours of a decoded frame, as its file states them (codes of ISO/IEC 23001-8)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from av.video.reformatter import Colorspace, VideoReformatter

_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    7: Colorspace.SMPTE240M,
    9: 9,  # BT.2020; PyAV has no name for what FFmpeg's conversion knows
    10: 9,
}
"""Colour matrices other than BT.601's (5 and 6) and none (2)."""
_UNKNOWN = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE ST 2085",
    12: "derived from its primaries",
    13: "derived from its primaries with constant luminance",
    14: "ICtCp",
}
"""Matrices that the conversion does not know; the nearest is taken."""
_HDR = {16: "PQ", 18: "HLG"}
"""Curves of brightness for displays of more range than a picture of 8 bits has."""


def in_rgb(frame: Any, colours: VideoReformatter | None = None) -> Any:
    """A decoded frame in the format ``rgb24``, by the colour matrix that its file states.

    FFmpeg's conversion takes BT.601's unless it is told, which what says nothing has here too.
    """
    convert = frame.reformat if colours is None else partial(colours.reformat, frame)
    matrix = _MATRICES.get(int(frame.colorspace))
    if matrix is None:
        return convert(format="rgb24")
    return convert(format="rgb24", src_colorspace=matrix, dst_colorspace=Colorspace.ITU601)


def odd_colours(matrix: int, curve: int) -> Iterator[str]:
    """What of a file's colours is not shown as it states them.

    Args:
        matrix, curve: codes of the colour matrix and of the transfer characteristics.
    """
    if matrix in _UNKNOWN:
        yield f"its colour matrix ({_UNKNOWN[matrix]}) is not known here: its colours come out differently"
    if curve in _HDR:
        yield f"it is HDR ({_HDR[curve]}), and pictures are read without that curve: flat, in pale colours"
