"""What is made of several requests before the model runs.

Shape legend: B rows, T action steps, A action dims, S tokens, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vla_core.batch import Batch, Cameras, Known, TokenFields
from vla_core.features import Constraint
from vla_core.row import Row as Row


@dataclass
class Prepared:
    """All that the model reads of some rows.

    Args:
        batch: without targets.
        noise: float32 ``[B, T, A]`` (or the head's ``noise_dim`` in place of A).
        constraint: where a row has a previous chunk; a row without is free.
    """

    batch: Batch
    noise: Tensor
    constraint: Constraint | None = None

    def __len__(self) -> int:
        return len(self.batch)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Prepared:
        """A copy on ``device``."""
        constraint = self.constraint
        return Prepared(
            self.batch.to(device, non_blocking),
            self.noise.to(device, non_blocking=non_blocking),
            None if constraint is None else constraint.to(device, non_blocking),
        )

    @staticmethod
    def join(parts: Sequence[Prepared]) -> Prepared:
        """The rows of all ``parts``, in order, as if they had been prepared together.

        All come from one policy, so that their token rows are equally long.
        """
        if len(parts) == 1:
            return parts[0]
        return Prepared(
            _join_batches([part.batch for part in parts]),
            torch.cat([part.noise for part in parts]),
            _join_constraints(parts),
        )


def most_frozen(parts: Sequence[Prepared]) -> int | None:
    """``n_frozen`` of the rows together; None where a row's is not known."""
    frozen = [0 if part.constraint is None else part.constraint.n_frozen for part in parts]
    return None if None in frozen else max(n for n in frozen if n is not None)


def _join_constraints(parts: Sequence[Prepared]) -> Constraint | None:
    given = [part.constraint for part in parts if part.constraint is not None]
    if not given:
        return None
    steps, dims = given[0].actions.shape[1:]
    rows = [
        part.constraint
        if part.constraint is not None
        else Constraint(torch.zeros(len(part), steps, dims), torch.zeros(len(part), steps), 0)
        for part in parts
    ]
    return Constraint(
        torch.cat([row.actions for row in rows]),
        torch.cat([row.weights for row in rows]),
        most_frozen(parts),
    )


def _join_batches(batches: Sequence[Batch]) -> Batch:
    assert all(batch.future is None for batch in batches), "rows of inference have no future"
    plain = {
        f.name: _cat([getattr(batch, f.name) for batch in batches])
        for f in fields(Batch)
        if f.name not in ("tokens", "cameras", "future")
    }
    return Batch(
        tokens=_join_tokens([batch.tokens for batch in batches]), cameras=_join_cameras(batches), **plain
    )


def _cat(values: Sequence[Any]) -> Any:
    if all(value is None for value in values):
        return None
    assert all(value is not None for value in values), "rows of one policy have the same fields"
    return torch.cat(list(values))


def _join_tokens(rows: Sequence[TokenFields]) -> TokenFields:
    assert all(row.counts == rows[0].counts for row in rows), "rows of one policy have the same prompt"
    positions = [row.position_ids for row in rows if row.position_ids is not None]
    assert len(positions) in (0, len(rows))
    return TokenFields(
        input_ids=torch.cat([row.input_ids for row in rows]),
        attention_mask=torch.cat([row.attention_mask for row in rows]),
        roles=torch.cat([row.roles for row in rows]),
        position_ids=torch.cat(positions, dim=1) if positions else None,
        counts=rows[0].counts,
        right_padded=all(row.right_padded for row in rows),
        all_views=all(row.all_views for row in rows),
        labels=_cat([row.labels for row in rows]),
        n_answer=sum(row.n_answer for row in rows),
    )


def _join_cameras(batches: Sequence[Batch]) -> Cameras | None:
    """What some rows know and others do not is known for those views alone."""
    given = [batch.cameras or Cameras() for batch in batches]
    if all(batch.cameras is None for batch in batches):
        return None
    values, known = {}, {}
    for name in ("intrinsics", "extrinsics", "depth"):
        values[name], known[name] = _join_view_field(name, given, batches)
    keys = None
    if any(cameras.view_keys is not None for cameras in given):
        nothing = (None,) * batches[0].images.shape[1]
        keys = tuple(
            row
            for cameras, batch in zip(given, batches, strict=True)
            for row in (cameras.view_keys or [nothing] * len(batch))
        )
    return Cameras(**values, known=Known(**known), view_keys=keys)


def _join_view_field(
    name: str, cameras: Sequence[Cameras], batches: Sequence[Batch]
) -> tuple[Tensor | None, Tensor | None]:
    values: list[Tensor | None] = [getattr(c, name) for c in cameras]
    shapes = [value.shape[2:] for value in values if value is not None]
    if not shapes:
        return None, None
    whole = all(
        v is not None and getattr(c.known, name) is None for v, c in zip(values, cameras, strict=True)
    )
    parts, masks = [], []
    for value, c, batch in zip(values, cameras, batches, strict=True):
        views = batch.view_mask.shape
        parts.append(torch.zeros(*views, *shapes[0]) if value is None else value)
        mask = getattr(c.known, name)
        if value is None:
            mask = torch.zeros(views, dtype=torch.bool)
        masks.append(batch.view_mask if mask is None else mask)
    return torch.cat(parts), None if whole else torch.cat(masks)
