"""Write the key table of docs/starvla.md from the translation table that vla-train applies.

uv run tools/starvla_table.py            fails when the page is not what the code says
uv run tools/starvla_table.py --write    refreshes it (``make docs``)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vla_train.dialects.starvla.modules import PATHS
from vla_train.dialects.starvla.table import TABLE

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "starvla.md"
BEGIN, END = "<!-- key table, written by `make docs` -->\n", "<!-- end of key table -->\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(keys: str) -> str:
    return ", ".join(f"`{key}`" for key in keys.split(", ")) if keys else "no effect"


def render() -> str:
    """Both tables."""
    lines = ["| StarVLA | here | |", "|---|---|---|"]
    for rule in sorted(TABLE, key=lambda rule: rule.theirs):
        lines.append(f"| `{rule.theirs}` | {_code(rule.ours)} | {_cell(rule.note)} |")
    lines += ["", "Modules, in learning rates and freezing:", "", "| StarVLA | here |", "|---|---|"]
    lines += [f"| `{theirs}` | `{ours}` |" for theirs, ours in (*PATHS, ("action_model", "head"))]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compare, or write with ``--write``; returns the exit code."""
    parser = argparse.ArgumentParser(description="the key table of docs/starvla.md")
    parser.add_argument("--write", action="store_true", help="refresh the page")
    write = parser.parse_args().write
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}{render()}{END}{after}"
    if write:
        PAGE.write_text(new)
    elif new != page:
        print("starvla_table: docs/starvla.md is not what the code says; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
