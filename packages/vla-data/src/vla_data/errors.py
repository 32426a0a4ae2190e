"""Errors about the content of a data set: one line with data set, episode, frame and file."""

from __future__ import annotations

from vla_core.errors import UserError


class BadDataError(UserError):
    """Stored data that is damaged, missing or not what the metadata says.

    It holds its message alone, so that it is the same after pickling from a worker process.
    """


def one_line(error: BaseException) -> str:
    """What a library said, in one line and without the file's name at its end."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = " ".join(said.split())
    return words or type(error).__name__
