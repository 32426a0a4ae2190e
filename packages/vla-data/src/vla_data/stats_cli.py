"""``vla-data stats``: the numbers of a data set, and what is suspicious about them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_core.errors import ConfigError


def add_stats(commands: Any) -> None:
    """Add the subcommand to the subparsers of ``vla-data``."""
    parser = commands.add_parser(
        "stats",
        allow_abbrev=False,
        help="ranges and histograms of state and action, and what is suspicious",
        description="Look at all numbers of a data set: ranges, clipped shares, dead dims, outliers, jumps, "
        "NaN. Nothing is decoded.",
    )
    parser.add_argument("dir", type=Path, metavar="PATH", help="the data set's directory")
    parser.add_argument("--report", type=Path, metavar="FILE", help="page to write (.html), with histograms")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from vla_data.facts import report_on
    from vla_data.stats_page import page, text

    if rest:
        raise ConfigError(f"unknown argument '{rest[0]}'")
    if args.report is not None and args.report.suffix.lower() != ".html":
        raise ConfigError(f"--report: {args.report} must end in .html")
    found = report_on(args.dir)
    print(text(found))
    if args.report is not None:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text(page(found), encoding="utf-8")
        print(f"\nreport      {args.report}")
