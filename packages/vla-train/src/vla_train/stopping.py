"""SIGTERM and SIGUSR1, as clusters send them: save at the end of the step, then leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch

from vla_train.engine import Engine

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EVERY = 8
"""Ranks ask each other every so many steps: each time costs a wait for the device."""


class Stop:
    """A block in which the signals ask for an end instead of making one."""

    def __init__(self) -> None:
        self._signalled = False
        self._before: dict[int, Any] = {}

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
        """Whether some rank was signalled; all ranks answer alike, at most :data:`EVERY` steps later."""
        if engine.world == 1:
            return self._signalled
        if step % EVERY:
            return False
        flag = torch.tensor(float(self._signalled), device=engine.device)
        return bool(engine.sum(flag) > 0)
