"""What ``vla-train`` does besides training, each part imported when it is called"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

Command = Callable[[Sequence[str], Console], int]


def list_parts(console: Console) -> int:
    """``--list``: framework presets and installed parts."""
    from vla_core import registry

    from vla_train.presets import list_presets

    console.print("frameworks:")
    for name, text in list_presets().items():
        console.print(f"  {name:24} {text}", highlight=False)
    for group in registry.GROUPS:
        console.print(f"{group}: {', '.join(registry.names(group)) or 'none'}", highlight=False)
    return 0


def _ablate(argv: Sequence[str], console: Console) -> int:
    from vla_train.ablate.cli import run as ablate

    return ablate(argv, console)


def _import_starvla(argv: Sequence[str], console: Console) -> int:
    from vla_train.importers.starvla.cli import run as import_starvla

    return import_starvla(argv, console)


def _import_lerobot(argv: Sequence[str], console: Console) -> int:
    from vla_train.importers.lerobot.cli import run as import_lerobot

    return import_lerobot(argv, console)


def _fit_fast(argv: Sequence[str], console: Console) -> int:
    from vla_train.fit_fast import run as fit_fast

    return fit_fast(argv, console)


def _report(argv: Sequence[str], console: Console) -> int:
    from vla_train.report.cli import run as report

    return report(argv, console)


def _pictures(argv: Sequence[str], console: Console) -> int:
    from vla_train.pictures.cli import run as pictures

    return pictures(argv, console)


COMMANDS: dict[str, Command] = {
    "ablate": _ablate,
    "import-starvla": _import_starvla,
    "import-lerobot": _import_lerobot,
    "fit-fast": _fit_fast,
    "report": _report,
    "pictures": _pictures,
}
