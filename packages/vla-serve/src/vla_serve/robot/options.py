"""The options of ``vla-robot``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vla_core.errors import UserError
from vla_core.options import Options

from vla_serve.access_args import add_access
from vla_serve.ensemble_args import add_ensemble


def make_parser() -> argparse.ArgumentParser:
    """All but those of the robot."""
    parser = Options(
        prog="vla-robot",
        description="Drive a robot with a served policy.",
        epilog="The robot: --robot.type NAME of lerobot (or MODULE:CLASS) and its options, "
        "--robot.KEY VALUE, for example --robot.type so101_follower --robot.port /dev/ttyACM0.",
        allow_abbrev=False,
    )
    add_access(parser)
    parser.set_defaults(timeout_s=5.0)
    add = parser.add_argument
    add("--instruction", required=True, help="what the robot is to do")
    add("--repack", type=Path, help="YAML file: the robot's names, units and limits where they differ")
    add(
        "--max_step",
        help="largest change of a command in a control step, in the contract's units: a number, or "
        "GROUP=NUMBER,... (default: no limit)",
    )
    add(
        "--watchdog_s",
        type=float,
        default=1.0,
        help="without an answer for so long, the robot's chunk is given up (default: %(default)s)",
    )
    add("--restart_s", type=float, default=60.0, help="wait for a server that went (default: %(default)s)")
    add("--wait_s", type=float, default=0.0, help="for a server that still starts (default: %(default)s)")
    add("--dry_run", action="store_true", help="send nothing: print what would be sent")
    add(
        "--rtc",
        action="store_true",
        help="real-time chunking: answers continue the chunk being executed",
    )
    add(
        "--execute_steps",
        type=int,
        help="actions executed per chunk (default: half of it, rounded up; of an ensemble 1)",
    )
    add_ensemble(parser)
    add("--episodes", type=int, default=1, help="default: %(default)s")
    add("--episode_s", type=float, help="length of an episode (default: until a key ends it)")
    add("--reset_s", type=float, default=10.0, help="between two episodes (default: %(default)s)")
    add("--record", type=Path, metavar="DIR", help="write what happened as a LeRobot data set")
    return parser


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
