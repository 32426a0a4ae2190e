"""The news of a worker's death comes after what it had under way broke off."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from vla_core.errors import UserError
from vla_train.dataloading import workers


def test_a_batch_that_broke_off_waits_for_the_news() -> None:
    """Else torch would raise it later, in code that expects nothing of the kind."""

    def handler(number: int, frame: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGUSR2, handler)
    news = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2))
    news.start()
    try:
        with (
            pytest.raises(UserError, match=r"died: DataLoader worker \(pid 7\) is killed"),
            workers.reading(),
        ):
            raise ConnectionResetError
    finally:
        news.join()
        signal.signal(signal.SIGUSR2, before)


def test_a_batch_that_broke_off_without_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "NEWS_S", 0.01)
    with (
        pytest.raises(UserError, match=r"died: its batch did not arrive \(EOFError\)"),
        workers.reading(),
    ):
        raise EOFError
