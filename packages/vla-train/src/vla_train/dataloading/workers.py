"""How loader workers begin and end, and what is said of one that dies.

They outlive the signals that a cluster sends to every process of a job, and keep their memory.

A worker that SIGTERM ended would turn the last step, which is to be saved, into an error about a dead worker.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vla_core.errors import UserError
from vla_data.memory import keep_memory

from vla_train.guards.stopping import SIGNALS

LOOK_S = 1.0
"""A worker looks so often whether its parent still lives."""

NEWS_S = 2.0
"""So long after a batch that did not arrive the news of a worker's death is waited for."""


class WorkerDied(UserError):
    """A loader worker ended by itself."""


@contextmanager
def shielded() -> Iterator[None]:
    """A block that starts workers: they begin with the signals held back, so that none comes too early."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(worker: int) -> None:
    """``worker_init_fn`` of a loader."""
    keep_memory()
    outlive()


def outlive() -> None:
    """Only the parent's own SIGTERM, or its death, ends the worker."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_watch, args=(os.getppid(),), name="signals", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        # A handler would not learn who sent it: the loader itself ends a worker that hangs by SIGTERM.
        info = signal.sigtimedwait(SIGNALS, LOOK_S)
        if info is not None and info.si_signo == signal.SIGTERM and info.si_pid == parent:
            break
    os._exit(0)


@contextmanager
def deaths_named() -> Iterator[None]:
    """A block in which torch may find, wherever it is, that a worker has died.

    Raises:
        UserError: instead of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise _dead(str(error)) from error


@contextmanager
def reading() -> Iterator[None]:
    """A block that takes a batch: what a dead worker had under way may be met before the news of its death.

    The system closes a process's pipes before it tells the parent. Torch raises out of its handler of that
    signal, wherever the main thread then is; so the block is not left before.

    Raises:
        UserError: instead of the error of the transport.
    """
    try:
        yield
    except (ConnectionError, EOFError) as error:
        with deaths_named():
            time.sleep(NEWS_S)
        raise _dead(f"its batch did not arrive ({type(error).__name__})") from error


def end(batches: Iterator[Any]) -> None:
    """End what a loader's iterator has running: its workers, and the thread that pins memory.

    After an error the iterator may be part of a cycle with its traceback. If that thread were still there, in
    C++ that cannot be unwound, when the interpreter goes, the process would abort with a code of its own.
    """
    finish = getattr(batches, "_shutdown_workers", None)  # of torch's, where there are workers
    if finish is not None:
        finish()


def _dead(what: str) -> UserError:
    said = what.strip().splitlines()[0].rstrip(". ")
    return WorkerDied(
        f"a loader worker died: {said}. Often the host is out of memory: lower datasets.num_workers"
    )
