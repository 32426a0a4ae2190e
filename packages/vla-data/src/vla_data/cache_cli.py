"""``vla-data cache``: its options and what it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_core.errors import ConfigError


def add_cache(commands: Any) -> None:
    """Add the subcommand to the subparsers of ``vla-data``."""
    parser = commands.add_parser(
        "cache",
        allow_abbrev=False,
        help="copy a data set with videos of the training resolution, quick to read",
        description="Copy a data set and transcode its videos to one size and a short GOP (h264). The copy "
        "appears when it is whole and checked.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="the data set's directory")
    parser.add_argument("out", type=Path, metavar="DST", help="new directory of the copy")
    parser.add_argument("--height", type=int, required=True, help="of every picture, in pixels, even")
    parser.add_argument("--width", type=int, required=True, help="of every picture, in pixels, even")
    parser.add_argument("--gop", type=int, default=4, help="frames from key frame to key frame (default: 4)")
    parser.add_argument("--crf", type=int, default=18, help="x264's rate factor (default: 18)")
    parser.add_argument(
        "--interpolation",
        default="bilinear",
        choices=("bilinear", "bicubic"),
        help="that of the training's resize (default: bilinear)",
    )
    parser.set_defaults(run=_run)


def _progress(done: int, total: int) -> None:
    # On a terminal one line that rewrites itself; a log gets none.
    if sys.stderr.isatty():
        line = f"{done}/{total} videos"
        print(f"\r{line:<30}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from vla_data.cache import CacheConfig, build_cache

    if rest:
        raise ConfigError(f"unknown argument '{rest[0]}'")
    config = CacheConfig(args.height, args.width, args.gop, args.crf, args.interpolation)
    report = build_cache(args.path, args.out, config, _progress)
    print(
        f"{args.out}: {report.frames:,} frames of {report.cameras} cameras, "
        f"{config.height} x {config.width}, h264, a key frame every {config.gop} frames"
    )
    print(f"size: {report.new_bytes / 1e6:,.1f} MB, the source has {report.old_bytes / 1e6:,.1f} MB")
    print(
        f"pixels: {report.error:.2f} of 255 from the resized originals on average (PSNR {report.psnr:.1f} dB)"
    )
    if report.kept:
        print(f"copied as they are, for they are no videos: {', '.join(report.kept)}")
