"""``vla-train ablate``: axes x seeds as separate runs, one table of them."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from vla_core.errors import UserError

from vla_train.command_line import TrainOptions, overrides_of

EPILOG = """axis:
  KEY=a,b,c           any config key, e.g. trainer.learning_rate.base=1e-4,3e-4
  fusion=none,gated   the fusion by name, with the geometric branch on; none: without it
  @a.yaml,b.yaml      overlay files, each a variant named after the file ([NAME=]@a.yaml,@b.yaml)
Several axes make a cross product. key=value overrides hold for every run.

In DIR: rows.jsonl (a line a run), table.md, table.csv, ablation.svg, and a folder a run. A later call with
the same DIR skips what is finished, tries again what failed, and adds what is new.

example:
  vla-train ablate --base configs/ablations/base.yaml --axis fusion=none,mean_pool,gated --seeds 0,1,2 \\
      --out runs/fusions trainer.max_steps=500
"""
_TAKES_MANY = ("--base", "--axis")
_TAKES_ONE = ("--seeds", "--out", "--jobs")


def _parser() -> argparse.ArgumentParser:
    parser = TrainOptions(
        prog="vla-train ablate",
        usage="vla-train ablate --base FILE [FILE ...] --axis KEY=a,b,c ... --out DIR [key=value ...]",
        description="Compare variants of a run over several seeds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--base", nargs="+", type=Path, metavar="FILE", help="YAML files, later ones win")
    parser.add_argument("--axis", action="append", default=[], metavar="KEY=a,b,c", help="see below")
    parser.add_argument("--seeds", default="0,1,2", help="of the runs of each variant (default: 0,1,2)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where rows, tables and runs go")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each in its process (default: 1)"
    )
    return parser


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own options, and the words that are overrides (argparse would take them for files)."""
    known: list[str] = []
    words: list[str] = []
    taking = 0
    for word in argv:
        name = word.partition("=")[0]
        if name in (*_TAKES_MANY, *_TAKES_ONE) or word in ("-h", "--help"):
            known.append(word)
            many = name == "--base" and "=" not in word
            taking = -1 if many else 0 if "=" in word or word in ("-h", "--help") else 1
        elif taking and not word.startswith("--") and (taking > 0 or "=" not in word):
            known.append(word)
            taking = max(taking - 1, -1) if taking > 0 else -1
        else:
            taking = 0
            words.append(word)
    return known, words


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: must list different whole numbers, e.g. 0,1,2") from None


def run(argv: Sequence[str], console: Console) -> int:
    """Parse, plan, run; 1 if a run of this plan failed.

    Args:
        argv: the words after ``vla-train ablate``.
        console: for progress and the table.
    """
    known, words = _split(argv)
    overrides = overrides_of(words, (*_TAKES_MANY, *_TAKES_ONE, "--help"))
    # First of all: who has no base knows the command too little for the details of an axis.
    if not any(word.partition("=")[0] in ("--base", "-h", "--help") for word in known):
        raise UserError("--base is missing, e.g. vla-train ablate --base configs/ablations/base.yaml")
    args = _parser().parse_args(known)
    if args.out is None:
        raise UserError("--out is missing, e.g. --out runs/fusions")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("ablate runs in one process; start it without accelerate launch")
    seeds = _seeds(args.seeds)

    # Heavy imports only now: a typo in the command answers at once.
    from vla_train.ablate.axes import parse_axis
    from vla_train.ablate.plan import make_plan
    from vla_train.ablate.run import run_plan
    from vla_train.spellings import load_run

    plan = make_plan(args.base, [parse_axis(text) for text in args.axis], seeds, overrides, load_run)
    rows = run_plan(plan, args.out, console, "vla-train ablate " + shlex.join(argv), args.jobs)
    console.print((args.out / "table.md").read_text("utf-8"), highlight=False, markup=False, soft_wrap=True)
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        console.print(f"{len(failed)} of {len(rows)} runs failed: "
                      + "; ".join(f"{row.name}: {row.error}" for row in failed),
                      highlight=False, markup=False, soft_wrap=True)  # fmt: skip
    return 1 if failed else 0
