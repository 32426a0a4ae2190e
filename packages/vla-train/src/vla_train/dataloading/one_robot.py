"""Data sets of one robot by its spec: whether their numbers can mean the same.

A spec knows groups, sizes and units as somebody wrote them. What the makers of a data set call its dims, and
how far its numbers reach, may tell that they wrote it of another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from vla_core.errors import SpecMismatch
from vla_core.sources import Source, TellsDimNames
from vla_core.specs import GroupSpec
from vla_core.stats import VectorStats

APART = 15.0
"""Two tasks of one robot reach as far within a factor of a few; degrees and radians are 57 apart."""
RESTS = 0.02
"""A group whose absolute numbers reach less far is at rest in that task, in any unit; a change, a tenth."""
_RATIOS = (
    (57.3, "degrees and radians"),
    (100.0, "shares and per cent, or m and cm"),
    (255.0, "0..1 and 0..255"),
    (1000.0, "m and mm"),
)
_ENDS = ((0.0, 1.0), (-1.0, 1.0), (-1.0, 0.0), (0.0, 100.0), (0.0, 255.0))


class OneDataSet(Protocol):
    """What is looked at of a data set."""

    @property
    def label(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def train(self) -> Source: ...


def check_order(first: OneDataSet, other: OneDataSet) -> None:
    """Raise :class:`SpecMismatch` where both name the same dims in another order."""
    for vector in ("state", "action"):
        ours, theirs = _names(first, vector), _names(other, vector)
        if (
            ours != theirs
            and "" not in ours
            and len(set(ours)) == len(ours)
            and sorted(ours) == sorted(theirs)
        ):
            raise SpecMismatch(
                f"{vector}: {first.where} has its dims in the order {', '.join(ours)}, {other.where} in the "
                f"order {', '.join(theirs)}; put them in one order with a robot file"
            )


def remarks(members: Sequence[OneDataSet]) -> Iterator[str]:
    """A line for each thing in which a data set seems to differ from the first of its robot."""
    first = members[0]
    for other in members[1:]:
        for vector, groups in (
            ("state", first.train.spec.observation.state),
            ("action", first.train.spec.action.groups),
        ):
            where = f"{vector} of the data sets {first.label} and {other.label}"
            ours, theirs = _names(first, vector), _names(other, vector)
            odd = [(a, b) for a, b in zip(ours, theirs, strict=False) if a and b and a != b]
            if odd:
                said = ", ".join(f"{a} and {b}" for a, b in odd[:8])
                yield f"{where}: the same dims are called {said}; are they the same, and in the same order?"
            stats = [one.train.spec.statistics.vectors.get(vector) for one in (first, other)]
            if stats[0] is not None and stats[1] is not None:
                yield from (f"{where}: {line}" for line in _reach(groups, stats[0], stats[1]))


def _names(one: OneDataSet, vector: str) -> list[str]:
    if not isinstance(one.train, TellsDimNames):
        return []
    return [name.lower().removesuffix(".pos") for name in one.train.dim_names(vector)]


def _reach(groups: Sequence[GroupSpec], a: VectorStats, b: VectorStats) -> Iterator[str]:
    start = 0
    for group in groups:
        part = slice(start, start + group.dim)
        start += group.dim
        most = [float(np.maximum(np.abs(s.q01[part]), np.abs(s.q99[part])).max()) for s in (a, b)]
        rests = RESTS if group.representation == "absolute" else RESTS / 10
        if min(most) > rests and max(most) / min(most) > APART:
            ratio = max(most) / min(most)
            like, what = min(_RATIOS, key=lambda known: abs(np.log(ratio / known[0])))
            why = f": {what}?" if 1 / 3 < ratio / like < 3 else ""
            yield f"'{group.name}' reaches {most[0]:.4g} in one and {most[1]:.4g} in the other{why}"
            continue
        for i in range(part.start, part.stop):
            ends = [_ends(s.min[i], s.max[i]) for s in (a, b)]
            if None not in ends and ends[0] != ends[1]:
                name = group.name if group.dim == 1 else f"{group.name}[{i - part.start}]"
                said = [f"from {low:g} to {high:g}" for low, high in filter(None, ends)]
                yield f"'{name}' goes {said[0]} in one and {said[1]} in the other: a gripper of two kinds?"


def _ends(low: float, high: float) -> tuple[float, float] | None:
    """The range that a dim fills to its ends, if it is one that commands of grippers have."""
    for known in _ENDS:
        if max(abs(low - known[0]), abs(high - known[1])) < 1e-3 * (known[1] - known[0]):
            return known
    return None
