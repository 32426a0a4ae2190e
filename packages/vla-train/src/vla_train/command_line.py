"""Words of the command line: options, config files and overrides."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vla_core.errors import UserError
from vla_core.options import Options

EPILOG = """overrides:
  key=value, --key value or --key=value, e.g. trainer.max_steps=200 --framework.name QwenOFT

examples:
  vla-train --config configs/quickstart.yaml
  vla-train --config my.yaml trainer.learning_rate.vlm=1e-5 run_id=lower_vlm
  vla-train --config my.yaml run_id=lower_vlm trainer.resume=true
  vla-train --config my.yaml --dry_run
  accelerate launch --config_file configs/accelerate/zero2.yaml -m vla_train --config my.yaml
  torchrun --nproc_per_node 2 -m vla_train --config my.yaml trainer.device=cpu

compare variants of a run over several seeds:
  vla-train ablate --help

take over a run of StarVLA:
  vla-train import-starvla --help

take over a pi0 or pi0.5 of lerobot or openpi:
  vla-train import-lerobot --help

fit the tokenizer of QwenFast to a data set:
  vla-train fit-fast --help

write a run's report again, with rollouts run by hand:
  vla-train report --help

set recorded pictures beside those of the simulator:
  vla-train pictures --help

exit codes: 0 done, 2 a mistake (one line says which), 75 stopped by SIGTERM or SIGUSR1 and saved,
  74 ended because another process was lost, 130 interrupted
"""


OPTIONS = ("--config", "--config_yaml", "--list", "--dry_run", "--help")
_KEYS = ("run_id", "run_root_dir", "seed", "trackers")
"""Overrides of one word, which may look like an option."""


class TrainOptions(Options):
    """The options of ``vla-train`` or of one of its commands; a mistake is a :class:`UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process: of several ranks one speaks."""
        command = self.prog.removeprefix("vla-train").strip()
        raise UserError(f"{command}{': ' if command else ''}{message}; see {self.prog} --help")


def overrides_of(words: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """``key=value`` words out of all accepted spellings.

    Args:
        words: what is no option.
        options: names of the program's options, which a word may be meant for.

    Raises:
        UserError: a word without a value, or one that is an option but for a letter or two.
    """
    out, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            key = word.removeprefix("--")
            name = word.partition("=")[0]
            near = difflib.get_close_matches(name[2:], [option[2:] for option in options], n=1, cutoff=0.75)
            if near and name[2:] not in _KEYS:
                raise UserError(f"command line: unknown option {name} (did you mean --{near[0]}?)")
            if "=" in key:
                out.append(key)
            elif rest and not rest[0].startswith("--"):
                out.append(f"{key}={rest.pop(0)}")
            elif key == "trainer.freeze_modules":
                out.append(f"{key}=[]")  # StarVLA's launchers pass it without a value
            else:
                raise UserError(f"command line: --{key} needs a value, e.g. --{key}=true")
        else:
            out.append(word)
    return out


def make_parser() -> argparse.ArgumentParser:
    """Options of a training run."""
    parser = TrainOptions(
        prog="vla-train",
        usage="vla-train --config FILE [FILE ...] [key=value ...]",
        description="Train a Vision-Language-Action policy and evaluate it in closed loop.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        "--config_yaml",
        nargs="+",
        action="extend",
        type=Path,
        metavar="FILE",
        help="YAML files, later ones win",
    )
    parser.add_argument("--list", action="store_true", help="list framework presets and installed parts")
    parser.add_argument(
        "--dry_run", action="store_true", help="check everything, show sizes and one batch, train nothing"
    )
    return parser


def split_configs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """``--config a.yaml b.yaml key=value``: argparse would take the override for a file."""
    known: list[str] = []
    words: list[str] = []
    taking = False
    for word in argv:
        if word in ("--config", "--config_yaml"):
            taking = True
            known.append(word)
        elif word.startswith("--"):
            taking = False
            (known if word.split("=")[0] in OPTIONS else words).append(word)
        elif word == "-h" or (taking and "=" not in word):
            known.append(word)
        else:
            taking = False
            words.append(word)
    return known, words
