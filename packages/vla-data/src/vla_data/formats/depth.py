"""Depth maps: arrays in parquet, or as lerobot stores them, 12-bit video and 16-bit or float pictures.

Shapes: H, W pixels. Source of the code of videos: lerobot 0.6 (``lerobot/datasets/depth_utils.py``), after
BEHAVIOR-1K: 4096 steps from ``depth_min`` to ``depth_max``, even in the distance or in its logarithm.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image as Pillow
from vla_core.types import Float

from vla_data.errors import BadDataError, one_line
from vla_data.formats.cells import CellReader
from vla_data.formats.features import camera_name, depth_pictures
from vla_data.formats.frame_reader import FrameReader
from vla_data.formats.info import FILE
from vla_data.formats.layout import Episode, Layout
from vla_data.formats.pictures import absence, coded, is_video
from vla_data.formats.tables import to_matrix

_TOP = 4095
_SUFFIX = "_depth"
_UNITS = {"m": 1.0, "mm": 0.001}
_FACTS = ("depth_min", "depth_max", "shift", "use_log")


@dataclass(frozen=True)
class DepthCode:
    """What the numbers 0 to 4095 of a depth video mean, in metres."""

    low: float
    high: float
    shift: float
    log: bool

    def metres(self, codes: np.ndarray[Any, Any]) -> Float:
        """Codes ``[H, W]`` to metres; 0 where the code is 0, as what was not measured is stored."""
        low, high = self.low, self.high
        if self.log:
            low, high = math.log(self.low + self.shift), math.log(self.high + self.shift)
        values: Float = codes.astype(np.float32) * np.float32((high - low) / _TOP) + np.float32(low)
        if self.log:
            values = np.exp(values) - np.float32(self.shift)
        return np.where(codes == 0, np.float32(0), np.clip(values, self.low, self.high))


def code_of(feature: Mapping[str, Any]) -> DepthCode | None:
    """The code that ``info`` of a depth video states in full; None where it does not."""
    info = feature.get("info") or feature.get("video_info") or {}
    values = [info.get(f"video.{fact}") for fact in _FACTS]
    numbers = [v for v in values[:3] if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < 3 or not isinstance(values[3], bool):
        return None
    low, high, shift = (float(n) for n in numbers)
    sound = low < high and (not values[3] or low + shift > 0)
    return DepthCode(low, high, shift, values[3]) if sound else None


def depth_of_cameras(layout: Layout, episodes: Sequence[Episode]) -> tuple[dict[str, str], dict[str, str]]:
    """Camera (by the data set's name) -> feature of its depth, and feature -> why it is not read.

    ``observation.images.top_depth`` belongs to the camera ``top``, as lerobot's robots name it.
    """
    found, unread = {}, {}
    for camera, key in layout.extras("depth").items():
        whole = "int" in str(layout.features[key]["dtype"]) and _unit(layout.features[key]) is None
        if whole:
            unread[key] = (
                f"its whole numbers are no metres, and {FILE} does not say their depth_unit (m or mm)"
            )
        else:
            found[camera] = key
    known = layout.cameras()
    for key in depth_pictures(layout.features):
        camera = camera_name(key).removeprefix("depth.").removesuffix(_SUFFIX)
        why = _unreadable(layout, key) or absence(layout, key, episodes)
        if camera not in known:
            why = f"there is no camera '{camera}' that it could belong to"
        if why is None:
            found.setdefault(camera, key)
        else:
            unread[key] = why
    return found, unread


def _unit(feature: Mapping[str, Any]) -> str | None:
    """Of its numbers, where ``info`` states one that is known."""
    said = (feature.get("info") or {}).get("depth_unit")
    return said if said in _UNITS else None


def _unreadable(layout: Layout, key: str) -> str | None:
    feature = layout.features[key]
    if is_video(layout, key):
        if code_of(feature) is None:
            return f"{FILE} does not say what its numbers mean (video.{', video.'.join(_FACTS)})"
    elif _unit(feature) is None:
        return f"{FILE} does not say its depth_unit (m or mm)"
    return None


class DepthReader:
    """Random access to depth maps.

    Args:
        layout: the data set.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._cells: CellReader[Any] = CellReader(self._unpack)
        self._frames = FrameReader(layout.fps)

    def _unpack(self, feature: str, column: pa.ChunkedArray) -> Any:
        if self._layout.features[feature]["dtype"] == "image":
            return column.combine_chunks()
        described = self._layout.features[feature]
        metres = to_matrix(column) * np.float32(_UNITS[_unit(described) or "m"])
        return metres.reshape(-1, *described["shape"])

    def read(self, episode: Episode, feature: str, frame: int, row: int) -> Float:
        """Metres ``[H, W]`` of frame ``frame`` of an episode, which stands in ``row`` of its data file.

        Raises:
            BadDataError: the file is gone or damaged.
        """
        described = self._layout.features[feature]
        if described["dtype"] == "video":
            if feature not in episode.videos:
                raise BadDataError(f"'{feature}' has no video of this episode")
            path, start, _ = episode.videos[feature]
            code = code_of(described)
            assert code is not None
            number = round(start * self._layout.fps) + frame
            return code.metres(self._frames.read(path, number, "gray12le"))
        cell: Any = self._cells.read(episode.data, feature, row)
        if described["dtype"] == "image":
            what = f"{episode.data}: '{feature}' in row {row}"
            content, name = coded(self._layout.root, episode.data, cell.as_py(), what)
            return picture_metres(content, described["info"]["depth_unit"], name or what)
        values: Float = cell
        return values


def picture_metres(content: bytes, unit: str, what: str | Path) -> Float:
    """A coded picture of one channel as metres ``[H, W]``."""
    try:
        with Pillow.open(io.BytesIO(content)) as opened:
            values = np.array(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadDataError(f"{what} is not a readable picture ({one_line(error)})") from error
    if values.ndim != 2:
        raise BadDataError(f"{what} is no depth map (its shape is {list(values.shape)})")
    return np.asarray(values, np.float32) * np.float32(_UNITS[unit])
