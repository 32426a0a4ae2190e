"""The small files of a run's folder: what keeps one from being written is one line, and the old one stays."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_core.errors import UserError


@contextmanager
def into(place: Path) -> Iterator[None]:
    """A block that writes ``place``, or in it.

    Raises:
        UserError: no space, or no right to write.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror or error})") from error


def write_text(path: Path, text: str) -> None:
    """All of it, or what was there before: under another name, flushed and renamed."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """The same, of plain data."""
    write_text(path, json.dumps(data, indent=1))
