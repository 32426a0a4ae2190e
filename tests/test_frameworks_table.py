"""docs/frameworks.md has a row for each preset, and none besides; what was measured is not compared."""

from __future__ import annotations

import re
from pathlib import Path

from vla_train.presets import list_presets

PAGE = Path(__file__).resolve().parent.parent / "docs" / "frameworks.md"


def test_every_preset_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    missing = sorted({name for name, _ in rows} ^ list_presets().keys())
    assert not missing, f"run `uv run tools/frameworks_table.py --write {' '.join(missing)}`"
    assert len(rows) == len(list_presets())
    for name, cells in rows:
        values = [cell.strip() for cell in cells.split("|")]
        assert len(values) == 13, name
        assert all(re.fullmatch(r"-|[\d,]+(\.\d+)?", value) for value in values[1:]), name
