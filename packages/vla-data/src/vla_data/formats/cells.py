"""Cells of bulky parquet columns, one at a time: depth maps stored as arrays, pictures stored as bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_data.errors import BadDataError, one_line
from vla_data.formats.tables import unreadable

T = TypeVar("T")


class CellReader(Generic[T]):
    """Cells by parquet row group; a few groups stay in memory, as such columns are the bulk of a dataset.

    Pickles without them.

    Args:
        unpack: a column's row group -> what is kept of it, indexed by row; picklable.
    """

    _MOST = 4

    def __init__(self, unpack: Callable[[str, pa.ChunkedArray], Any]) -> None:
        self._unpack = unpack
        # Copies in memory: no file stays open, so a forked process may go on with them.
        self._groups: OrderedDict[tuple[Path, int, str], Any] = OrderedDict()
        self._starts: dict[Path, NDArray[np.int64]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_unpack": self._unpack, "_groups": OrderedDict(), "_starts": {}}

    def read(self, file: Path, column: str, row: int) -> T:
        """What ``unpack`` gave for one row of a file.

        Raises:
            BadDataError: the file is gone or damaged.
        """
        if file not in self._starts:
            try:
                meta = pq.read_metadata(file)
            except (OSError, pa.ArrowException) as error:
                raise unreadable(file, "parquet file", error) from error
            sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
            self._starts[file] = np.cumsum([0, *sizes[:-1]])
        starts = self._starts[file]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        key = (file, group, column)
        if key not in self._groups:
            while len(self._groups) >= self._MOST:
                self._groups.popitem(last=False)
            try:
                with pq.ParquetFile(file) as opened:
                    # Arrow's threads do not survive a fork.
                    table = opened.read_row_group(group, columns=[column], use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise BadDataError(f"{file}: '{column}' is not readable ({one_line(error)})") from error
            self._groups[key] = self._unpack(column, table[column])
        self._groups.move_to_end(key)
        cell: T = self._groups[key][row - int(starts[group])]
        return cell
