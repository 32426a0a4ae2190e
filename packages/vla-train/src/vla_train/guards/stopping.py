"""SIGTERM and SIGUSR1, as clusters send them: save at the end of the step, then leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from vla_train.engine import Engine
from vla_train.engine.sum_later import Flag
from vla_train.guards.exits import BrokenOff

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """A block in which the signals ask for an end instead of making one; it may be entered again within.

    Args:
        engine: knows the ranks.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.signalled = False
        """This process was."""
        self.agreed = False
        """Some rank was, and all know it."""
        self._before: list[dict[int, Any]] = []
        self._flag = Flag(engine.device, engine.world)
        self._answer: Callable[[], bool] | None = None

    def __enter__(self) -> Stop:
        before: dict[int, Any] = {}
        # Handlers can be set in the main thread alone; elsewhere the caller has its own.
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._before.append(before)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def ask(self) -> None:
        """Between two steps: ranks hear of it a step later, when the answer is there without waiting."""
        if self.engine.world == 1:
            self.agreed = self.signalled
            return
        before, self._answer = self._answer, self._flag.ask(float(self.signalled))
        self.agreed = self.agreed or (before is not None and before())

    def now(self) -> bool:
        """Whether some rank was; all ranks ask, and wait for each other."""
        mine = torch.full((), float(self.signalled), device=self.engine.device)
        self.agreed = self.agreed or bool(self.engine.sum(mine) > 0)
        return self.agreed

    def breaking(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say``, by all ranks again and again in what takes long, which a signal breaks off.

        Raises:
            BrokenOff: from what is returned, on all ranks.
        """

        def saying(text: str) -> None:
            say(text)
            if self.now():
                raise BrokenOff

        return saying
