"""How a run ends that is not finished."""

from __future__ import annotations

from pathlib import Path

STOPPED = 75
"""Exit code (EX_TEMPFAIL) of a run that a signal stopped and that can go on."""
INTERRUPTED = 130
LOST = 74
"""Exit code (EX_IOERR) of a rank whose run another rank ended."""


class Stopped(Exception):
    """A signal ended the run ``when``; ``checkpoint`` is whole.

    Args:
        when: for example ``after step 3``.
        checkpoint: the last.
        ways: how to go on.
    """

    def __init__(self, when: str, checkpoint: Path, ways: str) -> None:
        super().__init__(f"stopped by a signal {when}; {checkpoint} is whole")
        self.ways = ways


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended the run.

    Args:
        ways: how to go on.
    """

    def __init__(self, ways: str) -> None:
        super().__init__("interrupted")
        self.ways = ways


class BrokenOff(Exception):
    """A signal asked for the end of the run while something was under way that takes long."""
