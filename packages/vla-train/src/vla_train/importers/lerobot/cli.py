"""``vla-train import-lerobot``: a published pi0 or pi0.5 as a checkpoint of this project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from vla_core.errors import UserError

from vla_train.importers.common.command import ImportParser, show

EPILOG = """DIR is a policy that lerobot (0.4 and later) wrote: config.json of type pi0 or pi05,
model.safetensors, policy_preprocessor.json and policy_postprocessor.json with their statistics; or
the run that holds it; or the directory of openpi's PyTorch conversion. The robot file says what
these do not: control rate, and the meaning of the dims. Start from what the directory tells:

  vla-train import-lerobot DIR --print_robot > robot.yaml
  vla-train import-lerobot DIR OUT --robot robot.yaml --base_vlm PALIGEMMA
  vla-serve --ckpt_path OUT
"""


def make_parser() -> ImportParser:
    """The parser of the command."""
    parser = ImportParser(
        "import-lerobot",
        "Turn a pi0 or pi0.5 of lerobot or openpi into a checkpoint that vla-serve and vla-train read.",
        EPILOG,
    )
    add = parser.add_argument
    add("dir", type=Path, metavar="DIR", help="see below")
    add("out", type=Path, nargs="?", metavar="OUT", help="checkpoint directory to write")
    add("--robot", type=Path, metavar="FILE", help="the robot file")
    add("--print_robot", action="store_true", help="print a robot file to fill in, and stop")
    add(
        "--base_vlm",
        metavar="DIR",
        help="config.json and tokenizer.json of PaliGemma (default: the preprocessor's tokenizer_name)",
    )
    add(
        "--stats",
        type=Path,
        metavar="FILE",
        help="statistics to take instead: a data set's meta/stats.json, or openpi's norm_stats.json",
    )
    add(
        "--prompt_state_dims",
        type=int,
        metavar="N",
        help="pi05: numbers in the prompt, the state's and then zeros (32 if lerobot padded it in training)",
    )
    return parser


def run(argv: Sequence[str], console: Console) -> int:
    """Parse, import, report; returns the exit code.

    Args:
        argv: the words after ``vla-train import-lerobot``.
        console: for the report.

    Raises:
        UserError: one line that says what is wrong and how to fix it.
    """
    args = make_parser().parse_args(argv)

    # Heavy imports only now: a typo in the command answers at once.
    from vla_train.importers.lerobot.importer import Request, import_policy, read_published
    from vla_train.importers.lerobot.robot_file import read_robot, template

    source = read_published(args.dir)
    if args.print_robot:
        console.print(template(source), end="", highlight=False, markup=False, soft_wrap=True)
        return 0
    if args.out is None:
        raise UserError(
            "import-lerobot: OUT is missing, e.g. vla-train import-lerobot DIR OUT --robot robot.yaml"
        )
    if args.robot is None:
        raise UserError(
            "--robot is missing: such a directory does not record the control rate and the meaning of the "
            f"dims; vla-train import-lerobot {args.dir} --print_robot > robot.yaml writes a file to fill in"
        )
    request = Request(read_robot(args.robot), args.base_vlm, args.stats, args.prompt_state_dims)
    show(import_policy(args.dir, args.out, request), console)
    return 0
