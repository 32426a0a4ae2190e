"""The tables of ``cost.py`` in Markdown."""

from __future__ import annotations

from typing import Any

from full_size import table

GOAL_MS, ENCODER_GOAL_MS = 2.0, 10.0


def report(run: Any, what: str) -> str:
    """What ran, the encoder alone, the fusions, checks, and what is missing."""
    sizes = run.facts.get("parameters", {})
    parts = [
        f"{what}; {sum(run.seconds.values()):.0f} s in all",
        ", ".join(f"{name} {n / 1e9:.2f} G parameters" for name, n in sizes.items()),
        f"The encoder alone, two views (goal: at most {ENCODER_GOAL_MS:.0f} ms):",
        table(
            {"mode": "mode|", "ms": "median ms|.2f", "slowest_ms": "slowest ms|.2f", "syncs": "host syncs|"},
            [_syncs(row) for row in run.encoder_rows],
        ),
        f"Each fusion with the encoder, beside the policy without (goal: at most {GOAL_MS:.0f} ms added "
        "to the graph with overlap, none for `align_loss`):",
        table(
            {
                "fusion": "fusion|",
                "million": "M parameters|.1f",
                "giga": "GFLOP, fusion|.1f",
                "encoder_giga": "GFLOP, encoder|.0f",
                "eager_added_ms": "eager, ms added|+.1f",
                "graph_graph_added_ms": "graph, ms added|+.2f",
                "graph_overlap_added_ms": "graph with overlap, ms added|+.2f",
                "compiled_overlap_added_ms": "and compiled encoder, ms added|+.2f",
                "graph_given_added_ms": "graph, features given, ms added|+.2f",
                "train_added_ms": "training, ms a step added|+.0f",
                "goal": "goal|",
                "error": "graph against eager|.1e",
                "syncs": "host syncs|",
            },
            _rows(run.rows),
        ),
        _base(run.rows),
        table(
            {"check": "check|", "value": "value|.1e", "limit": "limit|.0e", "passed": "passed|"},
            [row for row in run.checks if not row["passed"]] or run.checks[:0],
        )
        if any(not row["passed"] for row in run.checks)
        else f"all {len(run.checks)} checks passed",
    ]
    if run.errors:
        parts.append("not measured:\n" + "\n".join(f"- {k}: {v}" for k, v in run.errors.items()))
    return "\n\n".join(part for part in parts if part)


def _syncs(row: dict[str, Any]) -> dict[str, Any]:
    found = row.get("host_syncs")
    return {**row, "syncs": None if found is None else str(sum(found.values()))}


def _rows(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    base = rows.get("none", {}).get("flop")
    out = []
    for name, row in rows.items():
        if name == "none":
            continue
        shown = {"fusion": f"`{name}`", **_syncs(row), "million": row["parameters"] / 1e6}
        if base is not None and "flop" in row:
            shown |= {"giga": (row["flop"] - base) / 1e9, "encoder_giga": row["encoder_flop"] / 1e9}
        errors = [row[k] for k in ("graph_error", "overlap_error", "given_error") if k in row]
        shown["error"] = max(errors) if errors else None
        added = row.get("graph_overlap_added_ms")
        if added is not None:
            best = min(added, row.get("compiled_overlap_added_ms", added))
            shown["goal"] = "met" if best <= GOAL_MS else "missed"
        out.append(shown)
    return out


def _base(rows: dict[str, dict[str, Any]]) -> str:
    """The policy without geometry, which every variant was timed beside: the range of those medians."""
    keys = {"base_ms": "eager", "graph_base_ms": "graph"}
    found = []
    for key, mode in keys.items():
        values = [row[key] for row in rows.values() if key in row]
        if values:
            found.append(f"{mode} {min(values):.1f} to {max(values):.1f} ms")
    trained = [r["train_ms"] - r["train_added_ms"] for r in rows.values() if "train_ms" in r]
    if trained:
        found.append(f"training {min(trained):.0f} to {max(trained):.0f} ms a step")
    return f"Without geometry: {', '.join(found)}." if found else ""
