"""Commands of ``vla-data`` that other packages bring, which this one cannot import: entry points."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from vla_core.errors import UserError

GROUP = "vla.data_commands"
"""Name of the command -> a function that adds it to the subparsers."""
BROUGHT_BY = {"batch": "vla-train"}
"""What is documented, and the package it comes with."""


def add_others(commands: Any) -> None:
    """Add what installed packages bring; a documented command of a package that is absent says so.

    Raises:
        UserError: two packages bring a command of one name, or one that is here already.
    """
    found: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        # The same distribution can be seen twice (an editable install beside its build metadata).
        if found.get(point.name) == point.value:
            continue
        if point.name in found or point.name in commands.choices:
            raise UserError(f"the command '{point.name}' is there already, and {point.value} brings it too")
        found[point.name] = point.value
        try:
            add: Callable[[Any], None] = point.load()
        except ModuleNotFoundError as error:
            _add_absent(commands, point.name, f"the package '{error.name}'")
        else:
            add(commands)
    for name, package in BROUGHT_BY.items():
        if name not in commands.choices:
            _add_absent(commands, name, f"the package {package}: pip install {package}")


def _add_absent(commands: Any, name: str, needed: str) -> None:
    parser = commands.add_parser(name, add_help=False, others=True, help=f"(needs {needed})")

    def run(*_: object) -> None:
        raise UserError(f"this command needs {needed}")

    parser.set_defaults(run=run)
