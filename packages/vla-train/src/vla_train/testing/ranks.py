"""A command on several ranks of this host, as ``torchrun`` starts it, on gloo and the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit code (negative: by that signal) and its standard error."""

    code: int
    said: str


def run_ranks(
    command: Sequence[str], world: int = 2, folder: Path | None = None, timeout_s: float = 280.0
) -> list[Ended]:
    """Start ``command`` once a rank and wait for all.

    Where one fails the others, who would wait for it, are ended; so are all at the time limit.

    Args:
        command: program and arguments, the same on every rank.
        world: number of ranks.
        folder: where they run.
        timeout_s: for all together.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(world)]
        ranks: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, ranks)
        for rank, file in enumerate(files):
            env = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            ranks.append(
                subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=file)
            )
        end = time.monotonic() + timeout_s
        while any(process.poll() is None for process in ranks) and time.monotonic() < end:
            if any(process.poll() for process in ranks):
                # The same mistake ends all ranks by themselves, one a little after the other.
                _wait(ranks, min(end, time.monotonic() + 5))
                break
            time.sleep(0.05)
        _end(ranks)
        codes = [process.wait() for process in ranks]
        for file in files:
            file.seek(0)
        return [Ended(code, file.read()) for code, file in zip(codes, files, strict=True)]


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        process.kill()


def _wait(ranks: Sequence[subprocess.Popen[bytes]], end: float) -> None:
    while any(process.poll() is None for process in ranks) and time.monotonic() < end:
        time.sleep(0.05)
