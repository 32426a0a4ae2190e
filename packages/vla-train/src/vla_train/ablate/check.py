"""That all rows of one table belong together: nothing but the axes differs between them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vla_core.errors import UserError

from vla_train.ablate.axes import overlaps
from vla_train.ablate.plan import Variant
from vla_train.ablate.rows import FILE, Row
from vla_train.compare import differences


def _reach(key: str) -> str:
    """What setting a key can change: another name brings a part, or a preset, of other options."""
    return key.rpartition(".")[0] if key.startswith("framework.") and key.endswith(".name") else key


def _allowed(row: Row, variant: Variant) -> list[str]:
    """Keys in which runs of two variants may differ."""
    allowed = [_reach(key) for key in (*row.keys, *variant.keys)]
    without = [c for c in (row.config, variant.config) if not c["framework"]["use_geometric_branch"]]
    # A run without the branch has no encoder; that is no difference of its own.
    return [*allowed, "framework.geometry", "framework.fusion"] if without else allowed


def check_rows(rows: Sequence[Row], variants: Sequence[Variant], folder: Path) -> None:
    """Finished rows against the planned variants.

    Raises:
        UserError: a row whose variant, or whose base, has another config now: row, key, both values.
    """
    for variant in variants:
        for row in rows:
            if row.status != "finished":
                continue
            same = row.variant == variant.label
            allowed = [] if same else _allowed(row, variant)
            for key, old, new in differences(row.config, variant.config):
                if any(overlaps(key, other) for other in allowed):
                    continue
                what = "its config" if same else "the base"
                raise UserError(
                    f"{folder / FILE}: row {row.name}: {what} has changed since ({key} was "
                    f"{json.dumps(old)}, is {json.dumps(new)}); take another --out, or remove the row's line"
                )
