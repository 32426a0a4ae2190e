"""Whether a process that somebody else started still runs (Linux)."""

from __future__ import annotations

from pathlib import Path


def running(pid: int) -> bool:
    """Not once it has ended, also while it waits for somebody to ask how."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):  # the latter where it goes between opening and reading
        return False
    return words.rpartition(")")[2].split()[0] != "Z"
