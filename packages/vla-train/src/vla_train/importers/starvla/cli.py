"""``vla-train import-starvla``: a StarVLA run as a checkpoint of this project."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from vla_core.errors import UserError

from vla_train.importers.common.command import ImportParser, show

EPILOG = """RUN is the run's directory (config.yaml, dataset_statistics.json, checkpoints/) or a weights file
in it. The robot file says what StarVLA keeps in code: cameras and their order, the meaning and
normalisation of the dims. Start from what the statistics tell:

  vla-train import-starvla RUN --print_robot > robot.yaml
  vla-train import-starvla RUN OUT --robot robot.yaml --base_vlm DIR
  vla-serve --ckpt_path OUT

A run of the MapAnythingLlava3D fork: --base_vlm is its LLaVA-3D (or the merged directory it started from),
--vision_weights its SigLIP.
"""


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise UserError(f"--image_size {text}: must be HEIGHTxWIDTH in pixels, e.g. 224x224")
    return int(match[1]), int(match[2])


def make_parser() -> ImportParser:
    """The parser of the command."""
    parser = ImportParser(
        "import-starvla", "Turn a StarVLA run into a checkpoint that vla-serve and vla-train read.", EPILOG
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="see below")
    add("out", type=Path, nargs="?", metavar="OUT", help="checkpoint directory to write")
    add("--robot", type=Path, metavar="FILE", help="the robot file")
    add("--print_robot", action="store_true", help="print a robot file to fill in, and stop")
    add("--base_vlm", metavar="DIR", help="base VLM (default: the one in the config)")
    add(
        "--vision_weights",
        metavar="DIR",
        help="MapAnythingLlava3DPI: its SigLIP (default: the one the base VLM's config names)",
    )
    add("--step", type=int, metavar="N", help="weights of this step (default: the last)")
    add("--unnorm_key", metavar="KEY", help="dataset in the statistics, where there are several")
    add("--image_size", metavar="HxW", help="pixels the model saw (default: the config's)")
    add(
        "--hidden_states",
        choices=("transformers4", "transformers5"),
        help="Qwen3-VL: which transformers the run trained with (default: transformers4, which StarVLA pins)",
    )
    add("--fast", metavar="DIR", help="QwenFast: its action tokenizer (a copy of physical-intelligence/fast)")
    add("--horizon", type=int, metavar="T", help="actions a chunk (default: the config's)")
    add(
        "--dit_blocks",
        choices=("cross", "interleaved"),
        help="QwenPI, QwenPI_v3: what odd blocks attend to, where the config does not tell",
    )
    return parser


def run(argv: Sequence[str], console: Console) -> int:
    """Parse, import, report; returns the exit code.

    Args:
        argv: the words after ``vla-train import-starvla``.
        console: for the report.

    Raises:
        UserError: one line that says what is wrong and how to fix it.
    """
    args = make_parser().parse_args(argv)

    # Heavy imports only now: a typo in the command answers at once.
    from vla_train.importers.starvla import importer
    from vla_train.importers.starvla.plan import Choices
    from vla_train.importers.starvla.robot_file import choose_key, read_robot, template
    from vla_train.importers.starvla.run_files import find_run
    from vla_train.importers.starvla.shared import reads_state

    found = find_run(args.run, args.step)
    importer.framework_of(found)
    if args.print_robot:
        key = choose_key(found.statistics, args.unnorm_key, found.statistics_file)
        text = template(found.statistics, key, reads_state(found))
        console.print(text, end="", highlight=False, markup=False, soft_wrap=True)
        return 0
    if args.out is None:
        raise UserError(
            "import-starvla: OUT is missing, e.g. vla-train import-starvla RUN OUT --robot robot.yaml"
        )
    if args.robot is None:
        raise UserError(
            "--robot is missing: a StarVLA run does not record its cameras, the meaning of its dims and how "
            f"each was normalised; vla-train import-starvla {args.run} --print_robot > robot.yaml writes a "
            "file to fill in"
        )
    request = importer.Request(
        robot=read_robot(args.robot),
        base_vlm=args.base_vlm,
        vision_weights=args.vision_weights,
        unnorm_key=args.unnorm_key,
        image_size=None if args.image_size is None else _size(args.image_size),
        hidden_states=args.hidden_states,
        choices=Choices(args.dit_blocks, args.horizon, args.fast),
    )
    done = importer.import_run(found, args.out, request)
    show(done, console)
    return 0
