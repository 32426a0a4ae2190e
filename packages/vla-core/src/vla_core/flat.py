"""Prepared rows as a list of tensors, and what rows must have in common to share a graph.

What :meth:`~vla_core.rows.Prepared.join` would make of rows is known here without joining them: the rows can
then be copied to where a graph reads them, each from where it was prepared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vla_core.rows import Prepared

_CONSTRAINT = "constraint"
_HOST_ONLY = ("constraint.n_frozen",)
"""What only a check on the host reads, before a graph."""

_OF_ALL_ROWS = ("batch.tokens.right_padded", "batch.tokens.all_views", "batch.tokens.n_answer")
"""Plain facts that joined rows have together."""

_NOT_STACKED = ("batch.future", "batch.cameras.view_mask", "batch.cameras.view_keys")
"""What rows to be laid one below the other have not: a join drops it, refuses it, or makes more of it."""


_known: dict[tuple[type, str], tuple[tuple[str, str], ...] | None] = {}


def _fields(kind: type, path: str) -> tuple[tuple[str, str], ...] | None:
    """Name and path of the fields of a dataclass; None: it is none. Asked for each tensor of each request."""
    key = (kind, path)
    if key not in _known:
        above = f"{path}." if path else ""
        named = tuple((f.name, f"{above}{f.name}") for f in fields(kind)) if is_dataclass(kind) else None
        _known[key] = named
    return _known[key]


def leaves(value: Any) -> list[tuple[str, Any]]:
    """All that a nested dataclass holds, by path, in order."""
    found: list[tuple[str, Any]] = []
    _gather(value, _fields(type(value), "") or (), found)
    return found


def _gather(value: Any, named: tuple[tuple[str, str], ...], found: list[tuple[str, Any]]) -> None:
    for name, path in named:
        inner = getattr(value, name)
        below = None if inner is None else _fields(type(inner), path)
        if below is None:
            found.append((path, inner))
        else:
            _gather(inner, below, found)


def tensors(prepared: Prepared) -> list[Tensor]:
    """The tensors of a batch, in the order of :func:`leaves`."""
    return [value for _, value in leaves(prepared) if isinstance(value, Tensor)]


def row_dim(path: str) -> int:
    """Which dim of a tensor counts rows."""
    return 1 if path.endswith("position_ids") else 0


@cache
def _facts(path: str) -> tuple[int, bool, bool, bool, bool]:
    """Which dim counts rows; whether it is a constraint's, of all rows, the host's alone, not stacked."""
    return (
        row_dim(path),
        path.startswith(_CONSTRAINT),
        path in _OF_ALL_ROWS,
        path in _HOST_ONLY,
        path.startswith(_NOT_STACKED),
    )


@dataclass(frozen=True)
class Kind:
    """What two batches must have in common to share a graph: everything but the values of tensors.

    Args:
        rows: how many.
        each: path, shape of a row and dtype of every tensor; path and value of every other fact.
        constraint: the same of the constraint; None: no row has one.
        right_padded, all_views, n_answer: of all rows, see :class:`~vla_core.batch.TokenFields`.
    """

    rows: int
    each: tuple[Any, ...]
    constraint: tuple[Any, ...] | None
    right_padded: bool
    all_views: bool
    n_answer: int

    @staticmethod
    def of(prepared: Prepared, found: Iterable[tuple[str, Any]] | None = None) -> Kind:
        """The kind of rows that were prepared or joined; ``found``: their :func:`leaves`."""
        rows = len(prepared)
        each: list[Any] = []
        constraint: list[Any] = []
        together = []
        for path, value in leaves(prepared) if found is None else found:
            dim, of_constraint, of_all_rows, hosts, _ = _facts(path)
            into = constraint if of_constraint else each
            if isinstance(value, Tensor):
                shape = tuple(value.shape)
                assert shape[dim] == rows, f"{path} {shape}: not of {rows} rows"
                into.append((path, shape[:dim] + shape[dim + 1 :], value.dtype))
            elif of_all_rows:
                together.append(value)
            elif value is not None and isinstance(value, Mapping):
                into.append((path, tuple(sorted(value.items()))))
            elif not hosts:
                into.append((path, value))
        right_padded, all_views, n_answer = together
        return Kind(
            rows,
            tuple(each),
            None if prepared.constraint is None else tuple(constraint),
            right_padded,
            all_views,
            n_answer,
        )


class Flat(Prepared):
    """Prepared rows that know their :class:`Kind` and :func:`tensors`; neither is looked up again.

    Args:
        prepared: not changed any more.
    """

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared.batch, prepared.noise, prepared.constraint)
        found = leaves(prepared)
        self.kind = Kind.of(prepared, found)
        self.tensors = [value for _, value in found if isinstance(value, Tensor)]
        self.stackable = len(prepared) == 1 and _plain(prepared, found)


def _plain(prepared: Prepared, found: Iterable[tuple[str, Any]]) -> bool:
    constraint, cameras = prepared.constraint, prepared.batch.cameras
    if any([value is not None and _facts(path)[-1] for path, value in found]):
        return False
    if cameras is not None and any(
        getattr(cameras, name) is None and getattr(cameras.known, name) is not None
        for name in ("intrinsics", "extrinsics", "depth")
    ):
        return False
    return constraint is None or constraint.actions.dtype == constraint.weights.dtype == torch.float32


def stacked(rows: Sequence[Flat]) -> Kind | None:
    """The kind of ``Prepared.join(rows)``, of single rows; None: it takes a join to know."""
    first = rows[0].kind
    constraint = None
    for row in rows:
        kind = row.kind
        if not row.stackable or (kind.each is not first.each and kind.each != first.each):
            return None
        if kind.constraint is not None:
            if constraint is not None and kind.constraint != constraint:
                return None
            constraint = kind.constraint
    return Kind(
        len(rows),
        first.each,
        constraint,
        all(row.kind.right_padded for row in rows),
        all(row.kind.all_views for row in rows),
        sum(row.kind.n_answer for row in rows),
    )


class Places:
    """Where the tensors of each row of a batch go.

    Args:
        prepared: of the batch's kind; its values are not read.
        memory: for the tensors of the whole batch, in the order of :func:`tensors`.
    """

    def __init__(self, prepared: Prepared, memory: Sequence[Tensor]) -> None:
        named = [(path, value) for path, value in leaves(prepared) if isinstance(value, Tensor)]
        dims = [row_dim(path) for path, _ in named]
        rows = range(len(prepared))
        self.all = [
            whole.narrow(dim, row, 1) for row in rows for whole, dim in zip(memory, dims, strict=True)
        ]
        # Zeros in a constraint are a row that has none.
        self._free = [
            torch.zeros(1, *value.shape[1:], dtype=value.dtype)
            for path, value in named
            if path.startswith(_CONSTRAINT)
        ]

    def sources(self, rows: Sequence[Flat]) -> list[Tensor]:
        """What is copied to :attr:`all`, of rows that :func:`stacked` gives the batch's kind."""
        found: list[Tensor] = []
        for row in rows:
            found += row.tensors
            if row.constraint is None:
                found += self._free  # a constraint's tensors are a row's last
        return found
