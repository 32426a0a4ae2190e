"""The statistics that v3.0 keeps of each episode and of the whole, as lerobot names them.

Shapes: F frames, D dims.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vla_data.formats.tables import to_array

Stats = Mapping[str, NDArray[Any]]
"""``min``, ``max``, ``mean``, ``std``, ``count`` and quantiles of one feature."""
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def stats_of(values: NDArray[Any]) -> Stats:
    """Of rows ``[F, D]``, F >= 1; rows with NaN or infinity are left out where others remain."""
    rows = np.asarray(values, np.float64)
    finite = np.isfinite(rows).all(axis=1)
    rows = rows[finite] if finite.any() else np.nan_to_num(rows)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    found |= dict(zip(_QUANTILES, np.quantile(rows, list(_QUANTILES.values()), axis=0), strict=True))
    return {**found, "count": np.array([len(rows)])}


def picture_stats(pictures: NDArray[np.uint8]) -> Stats:
    """Of RGB pictures ``[F, H, W, 3]``, a number a channel in [0, 1], shaped ``[3, 1, 1]``."""
    found = stats_of(pictures.reshape(-1, pictures.shape[-1]) / 255.0)
    shaped = {name: value.reshape(-1, 1, 1) for name, value in found.items() if name != "count"}
    return {**shaped, "count": np.array([len(pictures)])}


def kept_stats(recorded: Any) -> Stats | None:
    """Statistics of pictures as a data set keeps them; None: not whole, or no numbers."""
    if not isinstance(recorded, Mapping):
        return None
    try:
        found = {name: np.array(value, np.float64) for name, value in recorded.items()}
    except (TypeError, ValueError):
        return None
    whole = {"min", "max", "mean", "std", "count"} <= found.keys() and found["count"].size == 1
    alike = len({value.shape for name, value in found.items() if name != "count"}) == 1
    return {**found, "count": found["count"].reshape(1).astype(int)} if whole and alike else None


def column_stats(table: pa.Table) -> dict[str, Stats]:
    """Of every column that holds numbers, or equally long lists of them."""
    found = {}
    for key in table.column_names:
        inner = table[key].type
        while pa.types.is_list(inner) or pa.types.is_fixed_size_list(inner):
            inner = inner.value_type
        number = pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)
        if number and not table[key].null_count:
            rows = to_array(table[key], np.float64)
            found[key] = stats_of(rows.reshape(len(rows), -1))
    return found


class Total:
    """Statistics of the whole from those of its episodes, in memory that does not grow.

    Mean and standard deviation are those of all frames; a quantile is the mean of the episodes' weighted by
    their lengths, as in lerobot's own aggregation, and not the quantile of all frames.
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, NDArray[np.float64]]] = {}
        self._counts: dict[str, int] = {}

    def add(self, key: str, stats: Stats) -> None:
        """One episode's."""
        n = int(stats["count"][0])
        new = {name: np.asarray(value, np.float64) * n for name, value in stats.items() if name in _QUANTILES}
        mean = np.asarray(stats["mean"], np.float64)
        new |= {"mean": mean * n, "square": (np.asarray(stats["std"], np.float64) ** 2 + mean**2) * n}
        low, high = np.asarray(stats["min"], np.float64), np.asarray(stats["max"], np.float64)
        if key not in self._sums:
            self._sums[key], self._counts[key] = {**new, "min": low, "max": high}, n
            return
        old = self._sums[key]
        both = {name: old[name] + new[name] for name in new if name in old}
        self._sums[key] = {
            **both, "min": np.minimum(old["min"], low), "max": np.maximum(old["max"], high)
        }  # fmt: skip
        self._counts[key] += n

    def result(self) -> dict[str, dict[str, Any]]:
        """Feature -> statistic -> numbers, for JSON."""
        found = {}
        for key, sums in self._sums.items():
            n = self._counts[key]
            mean = sums["mean"] / n
            std = np.sqrt(np.maximum(sums["square"] / n - mean**2, 0.0))
            stats = {"min": sums["min"], "max": sums["max"], "mean": mean, "std": std}
            stats |= {name: sums[name] / n for name in _QUANTILES if name in sums}
            found[key] = {**{name: value.tolist() for name, value in stats.items()}, "count": [n]}
        return found
