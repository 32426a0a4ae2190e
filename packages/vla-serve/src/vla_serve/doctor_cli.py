"""``vla-serve doctor``: why is the success rate 0 %? Replays recorded frames through a server that runs."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_core.dotted import dotted
from vla_core.errors import UserError
from vla_core.options import Options

from vla_serve.access_args import access, add_access
from vla_serve.clients.client import PolicyClient
from vla_serve.clients.errors import PolicyServerError
from vla_serve.contract_text import contract_lines
from vla_serve.doctor.diagnosis import FOLLOWED, Doctor
from vla_serve.doctor.errors import Yardstick
from vla_serve.doctor.frames import Frames, check_replayable, check_sees, differences, read_frames
from vla_serve.doctor.report import cause_lines, error_lines
from vla_serve.doctor.robot_code import function


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog="vla-serve doctor",
        description="Replay recorded frames through a server, compare its answers with the recording, and "
        "try the usual causes of a difference.",
        epilog="Options of the source of data: --data.KEY VALUE, for example --data.cameras '[a, b]'.",
        allow_abbrev=False,
    )
    add_access(parser)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="directory of the recording")
    add("--robot", type=Path, help="file that says what the data holds, where its source takes one")
    add("--source", help="what reads it, for example lerobot (default: by the files that are there)")
    add(
        "--client",
        metavar="FILE.py:FUNCTION",
        help="what your robot's code does to an Observation before it is sent, to find mistakes in it",
    )
    add("--frames", type=int, default=32, help="spread over the recording (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the policy's noise (default: %(default)s)")
    add("--all", action="store_true", help="try the causes also where the answers follow, and print all")
    return parser


def _run(args: argparse.Namespace, data_options: dict[str, Any]) -> int:
    if args.frames < 1 or args.seed < 0:
        raise UserError("--frames must be at least 1, and --seed not negative")
    options = access(args)
    with PolicyClient(args.address, **options) as client:
        contract, inputs = client.contract, client.camera_inputs
        print("\n".join(contract_lines(contract, client.max_delay_steps, client.camera_inputs)))
    frames: Frames = read_frames(args.data, args.source, data_options, contract.action.horizon, args.frames)
    check_replayable(contract, frames.spec)
    check_sees(contract, inputs, frames)
    if args.client is not None:
        frames = frames.through(function(args.client))
    for line in differences(contract, frames.spec):
        print(f"differs: {line}")
    print(f"{len(frames.observations)} frames of {args.data}")
    found = asyncio.run(Doctor(args.address, options, frames, args.seed).examine(args.all))
    print("", *error_lines(Yardstick(contract.action, frames), found), "", sep="\n")
    print(*cause_lines(found, args.all), sep="\n")
    return 0 if (found.scores < FOLLOWED).all() else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 when the answers follow the recording, 1 when not, 2 for a mistake."""
    args, rest = _parser().parse_known_args(argv)
    try:
        robot = {} if args.robot is None else {"robot": str(args.robot)}
        return _run(args, {**robot, **dotted(rest, "data", "vla-serve doctor")})
    except UserError as error:
        print(f"vla-serve doctor: {error}", file=sys.stderr)
        return 2
    except PolicyServerError as error:
        print(f"vla-serve doctor: {error}", file=sys.stderr)
        return 1
