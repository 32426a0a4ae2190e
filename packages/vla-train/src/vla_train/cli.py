"""``vla-train``: compose, train, evaluate in closed loop, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rich.console import Console
from vla_core.errors import UserError, suggest
from vla_core.options import unreadable

from vla_train.command_line import OPTIONS, make_parser, overrides_of, split_configs
from vla_train.commands import COMMANDS, list_parts
from vla_train.guards.exits import INTERRUPTED, STOPPED, Interrupted, Stopped
from vla_train.guards.last_words import say


def run(argv: Sequence[str], console: Console) -> int:
    """Parse, train, evaluate, report."""
    if (strange := unreadable(argv)) is not None:
        raise UserError(strange)
    known, words = split_configs(argv)
    args = make_parser().parse_args(known)
    if args.list:
        return list_parts(console)
    overrides = overrides_of(words, OPTIONS)
    if not args.config:
        raise UserError("--config is missing, e.g. vla-train --config configs/quickstart.yaml")

    from vla_train.spellings import load_run

    def note(text: str) -> None:
        from vla_train.monitoring.announce import line

        if os.environ.get("RANK", "0") == "0":  # one process of several speaks
            line(console, text)

    tree = load_run(args.config, overrides, note)
    # Only now: a mistake in the command, a file or the name of a framework answers seconds sooner.
    from vla_train.runs import execute

    execute(tree, console, list(argv), args.dry_run)
    return 0


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
    return _known(_main(sys.argv[1:] if argv is None else argv, console))


def _known(code: int) -> int:
    """``code``, with which a rank ends even where its process groups would keep it."""
    # A mistake before torch was needed does not wait for it.
    leaving = sys.modules.get("vla_train.engine.leaving")
    return code if leaving is None else int(leaving.leave_with(code))


def _main(argv: Sequence[str], console: Console) -> int:
    try:
        return _dispatch(argv, console)
    except UserError as error:
        say(str(error))
        return 2
    except (KeyboardInterrupt, Stopped) as end:
        ways = f"; {end.ways}" if isinstance(end, Stopped | Interrupted) else ""
        if argv[:1] == ["ablate"]:
            ways = "; go on with the same command"
        say(f"{str(end) or 'interrupted'}{ways}")
        return STOPPED if isinstance(end, Stopped) else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
