"""``vla-data convert``: its options and what it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_core.errors import ConfigError


def add_convert(commands: Any) -> None:
    """Add the subcommand to the subparsers of ``vla-data``."""
    parser = commands.add_parser(
        "convert",
        allow_abbrev=False,
        help="write a LeRobot v2.0 or v2.1 data set as v3.0",
        description="Write a LeRobot v2.0 or v2.1 data set as v3.0. Videos are joined without being coded "
        "again. The copy appears when it is whole and checked.",
    )
    parser.add_argument("path", type=Path, metavar="SRC", help="the data set's directory")
    parser.add_argument("out", type=Path, metavar="DST", help="new directory")
    parser.add_argument("--data-mb", type=int, default=100, help="largest parquet file, in MB (default: 100)")
    parser.add_argument("--video-mb", type=int, default=200, help="largest video file, in MB (default: 200)")
    parser.set_defaults(run=_run)


def show_progress(done: int, total: int) -> None:
    """Of episodes, on a terminal."""
    # On a terminal one line that rewrites itself; a log gets none.
    if sys.stderr.isatty():
        line = f"{done}/{total} episodes"
        print(f"\r{line:<30}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from vla_data.convert import ConvertConfig, convert

    if rest:
        raise ConfigError(f"unknown argument '{rest[0]}'")
    report = convert(args.path, args.out, ConvertConfig(args.data_mb, args.video_mb), show_progress)
    print(
        f"{args.out}: LeRobot v3.0 from {report.source}, {report.episodes} episodes, {report.frames:,} frames"
    )
    before, after = report.videos
    if before:
        print(f"videos: {before} files joined into {after}, no picture coded again")
    for remark in report.remarks:
        print(f"note: {remark}")
