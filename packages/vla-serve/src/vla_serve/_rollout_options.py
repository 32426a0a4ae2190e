"""The options of ``vla-rollout``."""

from __future__ import annotations

import argparse
from pathlib import Path

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


def make_parser() -> argparse.ArgumentParser:
    """All but those of the simulator."""
    parser = Options(
        prog="vla-rollout",
        description="Success rates of a served policy in a simulator.",
        epilog="Options of the simulator: --env.KEY VALUE, for example --env.image_size 128. "
        "Two results side by side: vla-rollout compare A B.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--address", default="", help="HOST:PORT of vla-serve; leave it out with --policy expert")
    add("--env", help="simulator, for example metaworld (with --replay: the one that recorded)")
    add(
        "--task",
        action="append",
        default=[],
        dest="tasks",
        help="task; may be given several times (with --replay: all that were recorded)",
    )
    add(
        "--replay",
        metavar="DATA",
        help="instead of a policy: the actions executed when vla-data record made DATA, from the same starts",
    )
    add(
        "--out",
        type=Path,
        required=True,
        help="directory of results, report and videos; a call goes on there",
    )
    add("--overwrite", action="store_true", help="replace what --out holds instead of going on")
    add("--episodes", type=int, help="per task (default: 20; with --replay: all that were recorded)")
    add("--seed", type=int, default=10_000, help="of the first episode (default: %(default)s)")
    add("--workers", type=int, default=2, help="simulator processes (default: %(default)s)")
    add(
        "--execute_steps",
        type=int,
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
    add_ensemble(parser)
    add("--instruction", help="say this in every episode")
    add("--instruction_from", metavar="TASK", help="say what TASK would say (swap experiment)")
    add("--hide", choices=("images",), help="the policy gets black images: does it need to look?")
    add("--videos", choices=("failures", "all", "none"), default="failures", help="default: %(default)s")
    add("--max_failures_videos", type=int, default=5, help="per task (default: %(default)s)")
    add(
        "--policy",
        default="",
        help="name on the server (default: its only one); expert: the simulator's own, without a server",
    )
    add("--embodiment", default="", help="name in the policy (default: its only one)")
    add("--encoding", choices=("raw", "png", "jpeg"), default="raw", help="of images (default: %(default)s)")
    add("--timeout_s", type=float, default=30.0, help="deadline of a request (default: %(default)s)")
    add("--restart_s", type=float, default=120.0, help="wait for a server that went (default: %(default)s)")
    add_shown(parser)
    return parser
