"""Depth maps stored as arrays in parquet. Shapes: H, W pixels."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from vla_core.types import Float

from vla_data.formats.cells import CellReader
from vla_data.formats.layout import Episode, Layout
from vla_data.formats.tables import to_matrix


class DepthReader:
    """Random access to depth maps.

    Args:
        layout: the data set.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._cells: CellReader[Float] = CellReader(self._unpack)

    def _unpack(self, feature: str, column: pa.ChunkedArray) -> Any:
        return to_matrix(column).reshape(-1, *self._layout.features[feature]["shape"])

    def read(self, episode: Episode, feature: str, row: int) -> Float:
        """Metres ``[H, W]`` of the frame in ``row`` of the episode's data file.

        Raises:
            BadDataError: the file is gone or damaged.
        """
        return self._cells.read(episode.data, feature, row)
