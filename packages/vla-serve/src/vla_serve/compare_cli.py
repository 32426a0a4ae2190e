"""``vla-rollout compare``: two results side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vla_core.options import Options

from vla_serve.rollouts.compare import compare, text
from vla_serve.rollouts.results import save
from vla_serve.rollouts.resume import read_results


def make_parser() -> argparse.ArgumentParser:
    """Its options."""
    parser = Options(
        prog="vla-rollout compare",
        description="The paired difference of two results over the same tasks and seeds, and what flipped.",
    )
    parser.add_argument("first", metavar="A", type=Path, help="results.json or its directory")
    parser.add_argument("second", metavar="B", type=Path, help="another one")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser


def run(argv: Sequence[str]) -> int:
    """Parse, compare, print; returns the exit code."""
    args = make_parser().parse_args(argv)
    result = compare(read_results(args.first), read_results(args.second))
    print(text(result, str(args.first), str(args.second)))
    if args.json is not None:
        save(result, args.json)
    return 0
