"""The formats that data sets are written in."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from vla_core.errors import UserError

Format: TypeAlias = Literal["lerobot", "arrays"]
FORMATS = get_args(Format)


def writer_of(name: Format) -> Any:
    """The class that writes a format.

    Raises:
        UserError: what LeRobot's format needs is not installed.
    """
    # Imported late: the one for LeRobot imports torch, which no worker needs.
    if name == "arrays":
        from vla_data._arrays_writer import ArraysWriter

        return ArraysWriter
    try:
        from vla_data._lerobot_writer import LeRobotWriter
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format lerobot needs the package '{error.name}': pip install 'vla-data[record]', "
            "or take --format arrays"
        ) from error
    return LeRobotWriter
