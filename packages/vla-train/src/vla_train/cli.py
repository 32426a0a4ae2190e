"""``vla-train``: compose, train, evaluate in closed loop, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from vla_core.errors import UserError, suggest

from vla_train.command_line import make_parser, overrides_of, split_configs
from vla_train.exits import INTERRUPTED, STOPPED, Stopped

Command = Callable[[Sequence[str], Console], int]


def run(argv: Sequence[str], console: Console) -> int:
    """Parse, train, evaluate, report."""
    known, words = split_configs(argv)
    args = make_parser().parse_args(known)
    if args.list:
        return _list(console)
    if not args.config:
        raise UserError("--config is missing, e.g. vla-train --config configs/quickstart.yaml")
    overrides = overrides_of(words)

    # Heavy imports only now: a typo in the command answers at once.
    from vla_train.announce import line
    from vla_train.runs import execute
    from vla_train.spellings import load_run

    def say(text: str) -> None:
        if os.environ.get("RANK", "0") == "0":  # one process of several speaks
            line(console, text)

    execute(load_run(args.config, overrides, say), console, list(argv), args.dry_run)
    return 0


def _list(console: Console) -> int:
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

    return ablate(argv, console, overrides_of)


def _import_starvla(argv: Sequence[str], console: Console) -> int:
    from vla_train.importers.starvla.cli import run as import_starvla

    return import_starvla(argv, console)


def _import_lerobot(argv: Sequence[str], console: Console) -> int:
    from vla_train.importers.lerobot.cli import run as import_lerobot

    return import_lerobot(argv, console)


def _fit_fast(argv: Sequence[str], console: Console) -> int:
    from vla_train.fit_fast import run as fit_fast

    return fit_fast(argv, console, split_configs, overrides_of)


COMMANDS: dict[str, Command] = {
    "ablate": _ablate,
    "import-starvla": _import_starvla,
    "import-lerobot": _import_lerobot,
    "fit-fast": _fit_fast,
}


def _dispatch(argv: Sequence[str], console: Console) -> int:
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:], console)
    if argv and not argv[0].startswith("-") and "=" not in argv[0]:
        hint = suggest(argv[0], COMMANDS)
        raise UserError(f"no command '{argv[0]}'{hint}; to train: vla-train --config FILE")
    return run(argv, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns 2 for a mistake in the input, with one line on stderr; 1 if an ablation's run failed; 75 if a
    signal stopped the run and it can go on.
    """
    # Lines stay whole where output is not a terminal: logs are searched by line.
    console = Console(soft_wrap=True)
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(argv, console)
    except UserError as error:
        print(f"vla-train: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Stopped) as end:
        go_on = "the same command" if argv[:1] == ["ablate"] else "trainer.resume=true"
        print(f"vla-train: {str(end) or 'interrupted'}; go on with {go_on}", file=sys.stderr)
        return STOPPED if isinstance(end, Stopped) else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
