"""Ablations: the cross product of axis values and seeds as separate runs, and one table of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_train.ablate.plan import Plan, Variant, make_plan
    from vla_train.ablate.rows import Row, read_rows
    from vla_train.ablate.run import run_plan
    from vla_train.ablate.table import write_tables

__all__ = ["Plan", "Row", "Variant", "make_plan", "read_rows", "run_plan", "write_tables"]

_WHERE = {
    "Plan": "plan",
    "Row": "rows",
    "Variant": "plan",
    "make_plan": "plan",
    "read_rows": "rows",
    "run_plan": "run",
    "write_tables": "table",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"vla_train.ablate.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'vla_train.ablate' has no attribute '{name}'")
