"""SIGTERM and SIGUSR1, as clusters send them: save at the end of the step, then leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch

from vla_train.engine import Engine
from vla_train.later import Later

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EVERY = 4
"""Ranks ask each other every so many steps, and read the answer when they ask again: by then it is there, and
nobody waits for the device."""


class Stop:
    """A block in which the signals ask for an end instead of making one."""

    def __init__(self) -> None:
        self._signalled = False
        self._before: dict[int, Any] = {}
        self._answer: Later | None = None

    def __enter__(self) -> Stop:
        # Handlers can be set in the main thread alone; elsewhere the caller has its own.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def asked(self, engine: Engine, step: int) -> bool:
        """Whether some rank was signalled; all ranks answer alike, within twice :data:`EVERY` steps."""
        if engine.world == 1:
            return self._signalled
        if step % EVERY:
            return False
        flag = torch.full((), float(self._signalled), device=engine.device)  # a copy from the host would wait
        before, self._answer = self._answer, Later(engine.sum(flag) > 0)
        return before is not None and before.read()
