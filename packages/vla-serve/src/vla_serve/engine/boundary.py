"""Where other people's code (a policy, a handler) meets what must go on whatever it raises."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType


class Boundary(AbstractContextManager["Boundary"]):
    """Keeps what is raised within the block, for the caller to hand to whoever waits for the result.

    Not a way to go on in silence: whoever enters one reads :attr:`error`.

    Args:
        exits: keep also what would end the thread or the process (``SystemExit``, ``KeyboardInterrupt``).
    """

    def __init__(self, exits: bool = False) -> None:
        self._exits = exits
        self.error: BaseException | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Keep the error, if it is one to keep."""
        if error is None or not (self._exits or isinstance(error, Exception)):
            return False
        self.error = error
        return True
