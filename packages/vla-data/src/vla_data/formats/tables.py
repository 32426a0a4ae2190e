"""Parquet files and their columns as arrays; what does not fit is one line. Shapes: F frames, D dims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_data.errors import BadDataError, one_line

_POINTER = b"version https://git-lfs"


def pointer(file: Path) -> str | None:
    """What to say of a file that is absent or a Git LFS pointer instead of data; None: neither."""
    try:
        with file.open("rb") as opened:
            head = opened.read(len(_POINTER))
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return one_line(error)
    return "a Git LFS pointer, not data; run git lfs pull" if head == _POINTER else None


def unreadable(file: Path, what: str, error: BaseException) -> BadDataError:
    """The error for a file that a library could not read."""
    return BadDataError(f"{file}: not a readable {what} ({pointer(file) or one_line(error)})")


def read_table(file: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()) -> pa.Table:
    """Some or all columns of a parquet file; of ``optional`` those that it has.

    Raises:
        BadDataError: unreadable, or without one of ``columns``.
    """
    try:
        if columns is not None:
            held = set(pq.read_schema(file).names)
            for name in columns:
                if name not in held:
                    raise BadDataError(f"{file}: has no column '{name}' (it has {', '.join(sorted(held))})")
            columns = [*columns, *(name for name in optional if name in held and name not in columns)]
        return pq.read_table(file, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, "parquet file", error) from error


def column_names(file: Path) -> list[str]:
    """The columns of a parquet file."""
    try:
        return list(pq.read_schema(file).names)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, "parquet file", error) from error


def storage(kind: pa.DataType) -> pa.DataType:
    """What a type is stored as; lerobot's library has types of its own around nested lists."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def to_array(column: pa.ChunkedArray, dtype: type[np.generic]) -> NDArray[Any]:
    """A scalar, list or nested-list column as ``[F]`` or ``[F, D]``."""
    values = column.combine_chunks()
    n = len(values)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    nested = False
    while _is_list(values.type):
        values, nested = values.flatten(), True
    array = values.to_numpy(zero_copy_only=False).astype(dtype)
    return array.reshape(n, -1) if nested else array


def to_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column as float32 ``[F, D]``; scalars have D = 1."""
    array = to_array(column, np.float32)
    return np.ascontiguousarray(array.reshape(len(array), -1))


def _first(bad: NDArray[np.bool_]) -> int | None:
    return int(bad.argmax()) if bad.any() else None


def vector_problem(column: pa.ChunkedArray, nested: bool = False) -> tuple[int, str] | None:
    """Why a column is not one vector of numbers a frame: (row, reason), or None where it is.

    ``nested``: a matrix is fine too.
    """
    values = column.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    depth, width = 0, 1
    while True:
        if depth == 1 and not nested and _is_list(values.type):
            return 0, f"is a matrix ({column.type} a frame), not a vector"
        null = _first(np.asarray(pc.is_null(values).to_numpy(zero_copy_only=False)))
        if null is not None:
            return null // width, f"holds null (dim {null % width})" if depth else "is null"
        if not _is_list(values.type):
            break
        if not pa.types.is_fixed_size_list(values.type):
            sizes = pc.list_value_length(values).to_numpy(zero_copy_only=False)
            odd = _first(sizes != sizes[0]) if len(sizes) else None
            if odd is not None:
                return odd // width, f"has {int(sizes[odd])} dims, and {int(sizes[0])} in the first frame"
        before, values = len(values), values.flatten()
        depth, width = depth + 1, max(1, width * (len(values) // max(1, before)))
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return 0, f"holds {kind}, not numbers"
    return None
