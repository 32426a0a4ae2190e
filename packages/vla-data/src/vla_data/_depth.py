"""Random access to depth maps stored as arrays in parquet. Shapes: F frames, H, W pixels."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from vla_core.types import Float

from vla_data._layout import Episode, Layout, to_array, to_matrix


class DepthReader:
    """Depth maps by parquet row group; a few groups stay in memory, because depth is the bulk of a dataset.

    Pickles without them.
    """

    _MOST = 4

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        # Copies in memory: no file stays open, so a forked process may go on with them.
        self._groups: OrderedDict[tuple[Any, int, str], tuple[NDArray[np.int64], Float]] = OrderedDict()
        self._starts: dict[Any, NDArray[np.int64]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_layout": self._layout, "_groups": OrderedDict(), "_starts": {}}

    def read(self, episode: Episode, feature: str, frame: int) -> Float:
        """Metres ``[H, W]`` of one frame."""
        file, index = episode.data, episode.start + frame
        if file not in self._starts:
            meta = pq.read_metadata(file)
            sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
            first = min(e.start for e in self._layout.episodes if e.data == file)
            self._starts[file] = first + np.cumsum([0, *sizes[:-1]])
        group = int(np.searchsorted(self._starts[file], index, side="right")) - 1
        key = (file, group, feature)
        if key not in self._groups:
            while len(self._groups) >= self._MOST:
                self._groups.popitem(last=False)
            with pq.ParquetFile(file) as opened:
                # Arrow's threads do not survive a fork.
                table = opened.read_row_group(group, columns=[feature, "index"], use_threads=False)
            shape = tuple(self._layout.features[feature]["shape"])
            depth = to_matrix(table[feature]).reshape(-1, *shape)
            self._groups[key] = (to_array(table["index"], np.int64), depth)
        self._groups.move_to_end(key)
        indices, depth = self._groups[key]
        return depth[int(np.searchsorted(indices, index))]
