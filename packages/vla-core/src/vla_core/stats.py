"""Normalisation statistics of a dataset, per vector (``state``, ``action``) and dim."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BY_STEP = "action_by_step"
"""The vector of a whole chunk: ``[T, A]`` as ``[T * A]`` dims, step by step."""


@dataclass(frozen=True, eq=False)
class VectorStats:
    """Per-dim statistics, float64 ``[D]`` each, over ``count`` rows; q01, q99 are quantiles."""

    mean: Array
    std: Array
    min: Array
    max: Array
    q01: Array
    q99: Array
    count: int

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name != "count":
                value = np.asarray(getattr(self, f.name), np.float64)
                object.__setattr__(self, f.name, value)
                if value.shape != np.shape(self.mean) or value.ndim != 1:
                    raise ValueError(f"statistics '{f.name}' have shape {value.shape}, expected [D]")

    @property
    def dim(self) -> int:
        return int(self.mean.shape[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VectorStats) and self.to_dict() == other.to_dict()

    def to_dict(self) -> dict[str, Any]:
        return {f.name: np.asarray(getattr(self, f.name)).tolist() for f in fields(self)}

    def repeated(self, times: int) -> VectorStats:
        """Those of a vector that is this one ``times`` in a row."""
        return self._map(lambda name: np.tile(getattr(self, name), times))

    def where(self, chosen: NDArray[np.bool_], other: VectorStats) -> VectorStats:
        """These for the dims in ``chosen [D]``, those of ``other`` for the rest."""
        return self._map(lambda name: np.where(chosen, getattr(self, name), getattr(other, name)))

    def _map(self, value: Callable[[str], Array]) -> VectorStats:
        named = {f.name: value(f.name) for f in fields(self) if f.name != "count"}
        return VectorStats(**named, count=self.count)

    @classmethod
    def from_rows(cls, rows: NDArray[np.floating[Any]]) -> VectorStats:
        """Statistics of ``rows [N, D]`` (N > 0)."""
        data = np.asarray(rows, np.float64)
        if data.ndim != 2 or data.shape[0] == 0:
            raise ValueError(f"statistics need rows [N > 0, D], got shape {data.shape}")
        mean, std, low, high = data.mean(0), data.std(0), data.min(0), data.max(0)
        # Of a copy in double precision the order is free; else quantile would make a second one.
        own = not np.shares_memory(data, rows)
        q01, q99 = np.quantile(data, [0.01, 0.99], axis=0, overwrite_input=own)
        return cls(mean, std, low, high, q01, q99, data.shape[0])


@dataclass(frozen=True)
class NormStats:
    """Statistics by vector name; ``"state"`` and ``"action"`` are the ones the pipeline reads."""

    vectors: Mapping[str, VectorStats] = field(default_factory=dict)

    def __getitem__(self, key: str) -> VectorStats:
        if key not in self.vectors:
            raise ValueError(f"no statistics for '{key}'; there are some for {sorted(self.vectors)}")
        return self.vectors[key]

    def to_dict(self) -> dict[str, Any]:
        return {name: stats.to_dict() for name, stats in self.vectors.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NormStats:
        return cls({name: VectorStats(**values) for name, values in data.items()})

    def save(self, path: Path) -> None:
        """Write JSON (all numbers round-trip exactly)."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> NormStats:
        return cls.from_dict(json.loads(path.read_text("utf-8")))
