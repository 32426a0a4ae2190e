"""The options of ``vla-rollout``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_core.options import Options

from vla_serve.access_args import add_shown
from vla_serve.ensemble_args import add_ensemble


def _steps(text: str) -> int | str:
    if text == "measured":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"a number of control steps or measured, not '{text}'") from error


EPILOG = """Options of the simulator: --env.KEY VALUE, for example --env.image_size 128.
Two results side by side: vla-rollout compare A B

exit codes: 0 all episodes ran, whatever their success; 1 some could not be run; 2 a mistake (one line says
which); 130 interrupted. The same command goes on where it stopped."""


def make_parser() -> argparse.ArgumentParser:
    """All but those of the simulator."""
    parser = Options(
        prog="vla-rollout",
        description="Success rates of a served policy in a simulator.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_what(parser.add_argument_group("what is run").add_argument)
    _add_policy(parser.add_argument_group("who acts").add_argument)
    chunks = parser.add_argument_group("when a chunk is asked for, and how it is executed")
    _add_timing(chunks.add_argument)
    add_ensemble(chunks)
    add = parser.add_argument_group("what is written").add_argument
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="results.json, report.html and videos; a second call goes on there",
    )
    add("--overwrite", action="store_true", help="replace what --out holds instead of going on")
    add(
        "--videos",
        choices=("failures", "all", "none"),
        default="failures",
        help="of which episodes (default: %(default)s)",
    )
    add(
        "--max_failures_videos",
        type=int,
        default=5,
        metavar="N",
        help="videos of failures a task, at most (default: %(default)s)",
    )
    add_shown(parser)
    return parser


def _add_what(add: Callable[..., Any]) -> None:
    add("--env", help="simulator, for example metaworld (with --replay: the one that recorded)")
    add(
        "--task",
        action="append",
        default=[],
        dest="tasks",
        metavar="TASK",
        help="may be given several times (with --replay: all that were recorded)",
    )
    add(
        "--episodes",
        type=int,
        metavar="N",
        help="episodes a task (default: 20; with --replay: all that were recorded)",
    )
    add("--seed", type=int, default=10_000, help="of the first episode; others follow (default: %(default)s)")
    add("--workers", type=int, default=2, metavar="N", help="simulator processes (default: %(default)s)")
    add("--instruction", metavar="TEXT", help="say this in every episode (default: the task's sentence)")
    add("--instruction_from", metavar="TASK", help="say what TASK would say (swap experiment)")
    add("--hide", choices=("images",), help="the policy gets black images: does it need to look?")


def _add_policy(add: Callable[..., Any]) -> None:
    add(
        "--address",
        default="",
        metavar="HOST:PORT",
        help="of vla-serve; not with --policy expert or --replay",
    )
    add(
        "--policy",
        default="",
        metavar="NAME",
        help="name on the server (default: its only one); expert: the simulator's own, without a server",
    )
    add("--embodiment", default="", metavar="NAME", help="robot of the policy (default: its only one)")
    add(
        "--replay",
        metavar="DATA",
        help="instead of a policy: the actions executed when vla-data record made DATA, from the same starts",
    )
    add(
        "--encoding",
        choices=("raw", "png", "jpeg"),
        default="raw",
        help="of images on the wire; jpeg loses something (default: %(default)s)",
    )
    add(
        "--timeout_s",
        type=float,
        default=30.0,
        metavar="S",
        help="deadline of a request (default: %(default)s)",
    )
    add(
        "--restart_s",
        type=float,
        default=120.0,
        metavar="S",
        help="how long to wait for a server that went away (default: %(default)s)",
    )


def _add_timing(add: Callable[..., Any]) -> None:
    add(
        "--execute_steps",
        type=int,
        metavar="N",
        help="actions executed per chunk (default: half of it, rounded up; of an ensemble 1, or the delay)",
    )
    add(
        "--rtc",
        action="store_true",
        help="real-time chunking: answers continue the chunk being executed (needs --delay_steps)",
    )
    add(
        "--delay_steps",
        type=_steps,
        metavar="N|measured",
        help="control steps an answer takes; measured: what it really takes (default: the simulator waits)",
    )
    add(
        "--hold_steps",
        type=_steps,
        default=0,
        metavar="N|measured",
        help="control steps for which the robot holds still at each answer (default: %(default)s)",
    )
