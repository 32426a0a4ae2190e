"""``vla-train report``: the page of any run again, also of one that was killed, with rollouts run by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vla_train.command_line import TrainOptions
from vla_train.report import write_report


def run(argv: Sequence[str], console: Console) -> int:
    """Write ``report.html`` into the run's folder and say where it is.

    Raises:
        UserError: no run, or a rollout without results.
    """
    parser = TrainOptions(
        prog="vla-train report",
        description="Write report.html of a run again, from what its folder holds.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, killed ones too")
    parser.add_argument(
        "--rollout",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="what vla-rollout --out DIR wrote; may be given several times (RUN/rollout is found by itself)",
    )
    args = parser.parse_args(argv)
    console.print(str(write_report(args.run, args.rollout)), highlight=False, markup=False, soft_wrap=True)
    return 0
