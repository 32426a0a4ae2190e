"""``vla-train pictures``: does the simulator show what the demonstrations show?"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from vla_core.dotted import dotted
from vla_core.envs.recorded import read
from vla_core.errors import UserError

from vla_train.command_line import TrainOptions
from vla_train.pictures.compare import SAME, Difference, compare
from vla_train.pictures.film import Moment, moments
from vla_train.report import write_page
from vla_train.report._media import picture
from vla_train.report._page import Markup, note, section, tag


def run(argv: Sequence[str], console: Console) -> int:
    """Compare, say what differs, write a page; returns 0 where all pictures are the same, else 1.

    Raises:
        UserError: a data set without starts, a camera that the simulator lacks, or a simulator that refuses.
    """
    parser = TrainOptions(
        prog="vla-train pictures",
        description="Pictures of a data set beside its simulator's at the same starts, and what differs.",
        epilog="Options of the simulator, over the recorded ones: --env.KEY VALUE, as your rollout has them.",
        allow_abbrev=False,
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="data set that vla-data record made")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="page to write, e.g. pictures.html"
    )
    parser.add_argument(
        "--task", action="append", default=[], dest="tasks", help="default: all recorded ones"
    )
    parser.add_argument(
        "--step", type=int, default=20, help="also after so many actions (default: %(default)s)"
    )
    args, rest = parser.parse_known_args(argv)
    if args.step < 0:
        raise UserError(f"--step: {args.step} must be at least 0")
    return _run(args, dotted(rest, "env", "vla-train pictures"), console)


def _run(args: argparse.Namespace, options: Mapping[str, Any], console: Console) -> int:
    found = moments(args.data, read(args.data), options, args.tasks, args.step)
    rows = [(moment, camera, _compared(moment, camera)) for moment in found for camera in moment.recorded]
    for moment, camera, difference in rows:
        where = f"{moment.task} episode {moment.episode} frame {moment.frame} {camera}"
        said = difference.says or "the same"
        console.print(
            f"{where}: difference {difference.mean:.1f} of 255, {said}", highlight=False, soft_wrap=True
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_page(args.out, "Recorded and simulated pictures", [_section(rows)])
    console.print(str(args.out), highlight=False, markup=False, soft_wrap=True)
    return 1 if any(difference.says for _, _, difference in rows) else 0


def _compared(moment: Moment, camera: str) -> Difference:
    if camera not in moment.simulated:
        raise UserError(
            f"the data set has a camera '{camera}', the simulator {', '.join(moment.simulated)}; "
            "set --env.cameras to the recorded ones"
        )
    return compare(camera, moment.recorded, moment.simulated)


def _section(rows: Iterable[tuple[Moment, str, Difference]]) -> Markup:
    figures = []
    for moment, camera, difference in rows:
        views = tag(
            "div",
            picture(moment.recorded[camera], "recorded"),
            picture(moment.simulated[camera], "simulator"),
            picture(difference.image, "difference, four times"),
            class_="views",
        )
        title = f"{moment.task}, episode {moment.episode}, frame {moment.frame}, {camera}"
        said = f"difference {difference.mean:.1f} of 255: {difference.says or 'the same'}"
        kind = "no" if difference.says else "yes"
        caption = tag("figcaption", tag("b", title), tag("span", said, class_=kind))
        figures.append(tag("figure", views, caption, class_="seen"))
    text = (
        "Recorded, simulated, and four times their difference. "
        f"Up to {SAME:g} of 255 is what a video's compression leaves."
    )
    gallery = tag("div", *figures, class_="gallery")
    return section("pictures", "Recorded and simulated pictures", note(text), gallery)
