"""Episodes as mp4 (h264), through PyAV. Shapes: H, W image size in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import UserError

MAX_FPS = 30


def require_av() -> None:
    """Raise :class:`UserError` unless PyAV is installed."""
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError("videos need PyAV: pip install 'vla-serve[video]', or use --videos none") from error


def side_by_side(images: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """All cameras in one frame ``[H, W, 3]``, bottoms padded with black; H and W are even, as h264 wants."""
    views = list(images.values())
    height = max(view.shape[0] for view in views)
    width = sum(view.shape[1] for view in views)
    frame = np.zeros((height + height % 2, width + width % 2, 3), np.uint8)
    left = 0
    for view in views:
        frame[: view.shape[0], left : left + view.shape[1]] = view
        left += view.shape[1]
    return frame


def write(path: Path, frames: Sequence[NDArray[np.uint8]], control_hz: float) -> None:
    """Write every frame, in real time but for robots faster than 30 Hz, which are slowed to that."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=max(1, min(MAX_FPS, round(control_hz))))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        # One thread: a worker is one of many.
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
