"""Published statistics as ours, so that our normalisation gives the source's numbers.

D dims of a vector.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import UserError
from vla_core.stats import NormStats, VectorStats

from vla_train.importers.lerobot import openpi_files, processors
from vla_train.importers.lerobot.published import Fields, Published, Vector, read_json, vectors_in

EMPTY = 2e-6
"""A range below this is empty: its one value becomes -1, and every answer that value."""

_NEEDED = {"mean_std": ("mean", "std"), "none": ()}
_OURS = ("mean", "std", "min", "max", "q01", "q99")


def read_statistics(file: Path) -> dict[str, Fields]:
    """Of ``--stats``: a data set's ``meta/stats.json`` (lerobot), or openpi's ``norm_stats.json``.

    Raises:
        UserError: it is neither.
    """
    data = read_json(file)
    if "norm_stats" in data:
        return openpi_files.statistics(file)
    if not any(key in data for key in processors.KEYS.values()):
        raise UserError(
            f"{file}: has neither {' nor '.join(processors.KEYS.values())}; give a data set's "
            "meta/stats.json or openpi's norm_stats.json"
        )
    return vectors_in(data, file, processors.KEYS)


def convert(
    source: Published, given: dict[str, Fields] | None, dims: dict[str, int]
) -> tuple[NormStats, list[str]]:
    """Statistics of state and action for a robot of ``dims``, and notes.

    Args:
        source: the directory.
        given: those of ``--stats``, which win; None: the source's.
        dims: robot's dims of ``state`` and ``action``.

    Raises:
        UserError: a statistic that the normalisation needs is missing, or dims do not fit.
    """
    out, notes = {}, []
    for name, vector in (("state", source.state), ("action", source.action)):
        if not dims[name]:
            continue
        fields = vector.fields if given is None else given.get(name)
        out[name], more = _vector(source, name, vector, fields, dims[name])
        notes += more
    return NormStats(out), notes


def _vector(
    source: Published, name: str, vector: Vector, fields: Fields | None, dim: int
) -> tuple[VectorStats, list[str]]:
    needed = _NEEDED.get(vector.mode, (vector.low, vector.high))
    if fields is None:
        if needed:
            raise UserError(
                f"{source.directory}: has no statistics of '{vector.key}', normalised by {vector.mode}; "
                "pass --stats FILE, the data set's meta/stats.json or openpi's norm_stats.json"
            )
        zero, one = np.zeros(dim), np.ones(dim)
        made = VectorStats(zero, one, -one, one, -one, one, 0)
        return made, [f"{name}: not normalised, and without statistics"]
    missing = [field for field in needed if field not in fields]
    if missing:
        raise UserError(
            f"{source.directory}: the statistics of '{vector.key}' have no {', '.join(missing)}, which its "
            f"normalisation needs; pass --stats FILE with them"
        )
    length = len(next(iter(fields.values())))
    notes = []
    if length > dim and source.origin == "openpi":
        notes.append(f"{name}: the statistics have {length} dims, the robot's first {dim} are taken")
        fields = {key: value[:dim] for key, value in fields.items()}
    elif length != dim:
        raise UserError(
            f"{source.directory}: the statistics of '{vector.key}' have {length} dims, the robot file's "
            f"{name} groups have {dim}; they must cover the statistics in order"
        )
    if vector.low not in ("q01", "min"):
        notes.append(f"{name}: {vector.low} and {vector.high} stand where this project has q01 and q99")
    values, filled = _complete(vector, fields)
    if filled:
        notes.append(f"{name}: without {', '.join(filled)}, which no step reads; others stand there")
    return VectorStats(**values, count=0), notes


def _complete(vector: Vector, fields: Fields) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """All six statistics, and which of them the source does not have."""
    known = dict(fields)
    if vector.mode in ("q99", "min_max"):
        low, high = known[vector.low], known[vector.high] + vector.eps
        # Where the source divides by next to nothing, ours would answer 0 for -1.
        high = np.where(high - low < EMPTY, low + 2 * EMPTY, high)
        names = ("min", "max") if vector.mode == "min_max" else ("q01", "q99")
        known |= dict(zip(names, (low, high), strict=True))
    elif vector.mode == "mean_std":
        known["std"] = known["std"] + vector.eps
    filled = [name for name in _OURS if name not in known]
    for low_name, high_name in (("q01", "q99"), ("min", "max")):
        other = ("min", "max") if low_name == "q01" else ("q01", "q99")
        if low_name in known and high_name in known:
            continue
        if all(name in known for name in other):
            known[low_name], known[high_name] = known[other[0]], known[other[1]]
        else:
            known[low_name], known[high_name] = known["mean"] - known["std"], known["mean"] + known["std"]
    known.setdefault("mean", (known["q01"] + known["q99"]) / 2)
    known.setdefault("std", (known["q99"] - known["q01"]) / 2)
    return {name: known[name] for name in _OURS}, filled
