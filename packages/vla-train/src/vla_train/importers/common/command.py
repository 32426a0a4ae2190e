"""What the import commands of ``vla-train`` have in common."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console

from vla_train.command_line import TrainOptions

if TYPE_CHECKING:  # it imports torch, and a typo in the command answers at once
    from vla_train.importers.common.checkpoint import Imported


class ImportParser(TrainOptions):
    """The parser of ``vla-train COMMAND``."""

    def __init__(self, command: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"vla-train {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )


def show(done: Imported, console: Console) -> None:
    """Print how many tensors were imported, what the user should know, and where the rest is."""
    lines = [f"tensors     {done.counts}", *(f"note        {note}" for note in done.notes),
             f"checkpoint  {done.path}", f"report      {done.report} (where each tensor went)"]  # fmt: skip
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
