"""One self-contained HTML page on a training run: what was trained, how it went, what it can do.

The page loads nothing from outside: plots are inline SVG that follow the reader's light or dark
theme. The same run folder always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vla_train.checkpointing.small_files import write_text
from vla_train.report._page import page
from vla_train.report._run import read_run
from vla_train.report._sections import sections

__all__ = ["write_page", "write_report"]


def write_report(run_dir: Path | str, rollouts: Sequence[Path] = ()) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Reads ``metrics.jsonl`` and, where they exist, ``run.json``, ``config.yaml``, ``predictions.npz``
    and ``rollout/results.json``; a section whose input is missing says so and how to get it.
    ``rollouts`` are further directories of ``vla-rollout``, each shown after the run's own.

    Raises:
        UserError: no such folder, no metrics in it, no results in a rollout's, or a file that cannot be read.
    """
    run = read_run(Path(run_dir), rollouts)
    out = run.path / "report.html"
    write_page(out, f"{run.name} · training report", sections(run))
    return out


def write_page(out: Path, title: str, body: Sequence[str]) -> None:
    """Write a page of this look; ``body``: its parts as HTML."""
    # A reader who reloads the page while it is written sees the old one, never half a page.
    write_text(out, page(title, body))
