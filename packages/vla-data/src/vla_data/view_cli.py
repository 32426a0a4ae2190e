"""``vla-data view``: its options and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_core.errors import ConfigError


def add_view(commands: Any) -> None:
    """Add the subcommand to the subparsers of ``vla-data``."""
    parser = commands.add_parser(
        "view",
        allow_abbrev=False,
        help="an episode as one HTML page: pictures, state, action, instructions",
        description="Write one episode as a self-contained HTML page: pictures of each camera, state and "
        "action over time, instructions and what is odd.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="the data set's directory")
    parser.add_argument("--episode", type=int, default=0, help="its index (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="page to write (.html)")
    parser.add_argument("--pictures", type=int, default=8, help="of each camera, at most (default: 8)")
    parser.add_argument("--robot", help="YAML file that describes the robot")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from vla_data.view import episode_page

    if rest:
        raise ConfigError(f"unknown argument '{rest[0]}'")
    if args.out.suffix.lower() != ".html":
        raise ConfigError(f"--out: {args.out} must end in .html")
    text = episode_page(args.path, args.episode, args.pictures, args.robot)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(f"{args.out}: episode {args.episode} of {args.path}, {len(text) / 1e3:.0f} kB")
