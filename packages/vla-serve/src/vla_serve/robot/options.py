"""The options of ``vla-robot``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vla_core.errors import UserError
from vla_core.options import Options

from vla_serve.access_args import add_access
from vla_serve.ensemble_args import add_ensemble

EPILOG = """The robot: --robot.type NAME of lerobot, or MODULE:CLASS, and its options, --robot.KEY VALUE,
for example --robot.type so101_follower --robot.port /dev/ttyACM0

While it runs, q, Esc, the space bar and Ctrl-C stop the robot, n ends an episode.

exit codes: 0 stopped, or all episodes done; 1 server or robot failed; 2 a mistake (one line says which);
130 interrupted before the robot moved"""


def make_parser() -> argparse.ArgumentParser:
    """All but those of the robot."""
    parser = Options(
        prog="vla-robot",
        description="Drive a robot with a served policy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--instruction", required=True, metavar="TEXT", help="what the robot is to do")
    add_access(parser)
    parser.set_defaults(timeout_s=5.0)
    _add_motion(parser.add_argument_group("what is sent to the robot").add_argument)
    _add_server(parser.add_argument_group("when answers stop").add_argument)
    chunks = parser.add_argument_group("when a chunk is asked for, and how it is executed")
    _add_timing(chunks.add_argument)
    add_ensemble(chunks)
    _add_episodes(parser.add_argument_group("episodes and recording").add_argument)
    return parser


def _add_motion(add: Callable[..., Any]) -> None:
    add("--dry_run", action="store_true", help="send nothing: print what would be sent")
    add(
        "--repack",
        type=Path,
        metavar="FILE",
        help="YAML file: the robot's names, units and limits where they differ from the policy's",
    )
    add(
        "--max_step",
        metavar="STEP",
        help="largest change of a command in a control step, in the contract's units: a number, or "
        "GROUP=NUMBER,... (default: no limit)",
    )


def _add_server(add: Callable[..., Any]) -> None:
    add(
        "--watchdog_s",
        type=float,
        default=1.0,
        metavar="S",
        help="without an answer for so long the chunk is given up and the robot holds (default: %(default)s)",
    )
    add(
        "--restart_s",
        type=float,
        default=60.0,
        metavar="S",
        help="how long to wait for a server that went away (default: %(default)s)",
    )
    add(
        "--wait_s",
        type=float,
        default=0.0,
        metavar="S",
        help="how long to wait for a server that still starts (default: %(default)s)",
    )


def _add_timing(add: Callable[..., Any]) -> None:
    add(
        "--rtc",
        action="store_true",
        help="real-time chunking: answers continue the chunk being executed",
    )
    add(
        "--execute_steps",
        type=int,
        metavar="N",
        help="actions executed per chunk (default: half of it, rounded up; of an ensemble 1)",
    )


def _add_episodes(add: Callable[..., Any]) -> None:
    add("--episodes", type=int, default=1, metavar="N", help="how many (default: %(default)s)")
    add("--episode_s", type=float, metavar="S", help="length of an episode (default: until a key ends it)")
    add(
        "--reset_s", type=float, default=10.0, metavar="S", help="between two episodes (default: %(default)s)"
    )
    add("--record", type=Path, metavar="DIR", help="write what happened as a LeRobot data set")


def steps_of(text: str | None, groups: Sequence[str]) -> dict[str, float]:
    """``--max_step``: largest step by group; none for a group that is not named.

    Raises:
        UserError: neither a number nor ``GROUP=NUMBER,...``.
    """
    if text is None:
        return {}
    try:
        if "=" not in text:
            return dict.fromkeys(groups, float(text))
        pairs = [part.split("=") for part in text.split(",")]
        return {name.strip(): float(number) for name, number in pairs}
    except ValueError:
        raise UserError(f"--max_step: '{text}' is no number and no GROUP=NUMBER,...") from None
