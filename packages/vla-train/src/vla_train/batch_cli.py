"""``vla-data batch``: one batch of a training config, as the policy sees it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_core.errors import ConfigError

OPTIONS = ("--config", "--index", "--seed", "--rows", "--out")


def add_batch(commands: Any) -> None:
    """Add the command to the subparsers of ``vla-data`` (entry point ``vla.data_commands``)."""
    parser = commands.add_parser(
        "batch",
        allow_abbrev=False,
        others=True,
        usage="vla-data batch --config FILE [FILE ...] [options] [key=value ...]",
        help="one batch of a training config through its transforms, printed and drawn",
        description="Take one batch of a training config through its transforms, print what the policy gets, "
        "and draw it. No weights are read. Overrides are written as for vla-train.",
    )
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="as for vla-train")
    parser.add_argument("--index", type=int, default=0, help="number of the batch in the run (default: 0)")
    parser.add_argument("--seed", type=int, help="seed of the run (default: that of the config)")
    parser.add_argument("--rows", type=int, default=4, help="rows to print and draw, at most (default: 4)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write (.html)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from vla_train.batch_view import page, take, text
    from vla_train.command_line import overrides_of
    from vla_train.spellings import load_run

    for name, least in (("index", 0), ("rows", 1)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name}: must be at least {least}, is {getattr(args, name)}")
    if args.out is not None and args.out.suffix.lower() != ".html":
        raise ConfigError(f"--out: {args.out} must end in .html")
    files = [Path(word) for word in args.config if "=" not in word]
    if not files:
        raise ConfigError("--config: name a file, e.g. configs/quickstart.yaml")
    words = [word for word in args.config if "=" in word] + list(rest)
    overrides = overrides_of(words, OPTIONS) + ([] if args.seed is None else [f"seed={args.seed}"])
    taken = take(load_run(files, overrides, print), args.index, args.rows)
    print(text(taken))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page(taken), encoding="utf-8")
        print(f"\ndrawn       {args.out}")
