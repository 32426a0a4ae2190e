"""Where other people's code (a policy, a handler) meets what must go on whatever it raises."""

from __future__ import annotations

import inspect
import traceback
from contextlib import AbstractContextManager, suppress
from types import FrameType, TracebackType


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


def raise_again(error: BaseException) -> None:
    """In another thread, for instance."""
    raise error


def without_frames(error: BaseException) -> None:
    """Forget where an error whose reason is known came from, and those that led to it.

    Its frames hold the request it is about, and whoever keeps the error is one of them: all of it would stay
    until the garbage collector comes, which counts objects and no bytes. The frames are left as they are: one
    may be of a policy's own coroutine, which has taken note of the error and goes on.
    """
    for one in _chain(error):
        one.__traceback__ = None


def let_go(error: BaseException | None) -> None:
    """Empty the frames of an error that is kept: their locals hold the policy that raised it.

    Also of those that called them, as far as they have ended: a frame keeps its caller's. What is printed of
    the error later is the same.
    """
    for one in _chain(error):
        for frame, _ in traceback.walk_tb(one.__traceback__):
            caller: FrameType | None = frame
            while caller is not None:
                if not caller.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE):
                    with suppress(RuntimeError):  # it still runs
                        caller.clear()
                caller = caller.f_back
        traceback.clear_frames(one.__traceback__)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and those that led to it, each once: a cause may be its own (``raise error from error``)."""
    found: list[BaseException] = []
    left = [error]
    while left:
        one = left.pop()
        if one is not None and all(one is not other for other in found):
            found.append(one)
            left += [one.__cause__, one.__context__]
    return found
