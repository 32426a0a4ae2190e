"""A command on several ranks of this host, as ``torchrun`` starts it, on gloo and the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vla_core.testing.ports import reserved_port

from vla_train.testing.forks import Forked, server


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit code (negative: by that signal) and its standard error."""

    code: int
    said: str


def zero(stage: int) -> dict[str, str]:
    """What ``accelerate launch`` sets for a stage of ZeRO on CPUs."""
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_MIXED_PRECISION": "no",
        "DS_ACCELERATOR": "cpu",
    }


def readings(run: Path) -> list[tuple[int, float, float]]:
    """Step, loss and norm of the gradient of each line in a run's ``metrics.jsonl``."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


def run_ranks(
    command: Sequence[str],
    world: int = 2,
    folder: Path | None = None,
    timeout_s: float = 280.0,
    forked: bool = False,
) -> list[Ended]:
    """Start ``command`` once a rank and wait for all.

    Where one fails the others, who would wait for it, are ended; so are all at the time limit.

    Args:
        command: program and arguments, the same on every rank.
        world: number of ranks.
        folder: where they run.
        timeout_s: for all together.
        forked: see :func:`started`.
    """
    with started(command, world, folder, forked) as ranks:
        end = time.monotonic() + timeout_s
        while any(rank.process.poll() is None for rank in ranks) and time.monotonic() < end:
            if any(rank.process.poll() for rank in ranks):
                # The same mistake ends all ranks by themselves, one a little after the other.
                wait(ranks, min(end, time.monotonic() + 5))
                break
            time.sleep(0.05)
        for rank in ranks:
            rank.process.kill()
        return [rank.ended() for rank in ranks]


@dataclass(frozen=True)
class Rank:
    """A rank that was started."""

    process: subprocess.Popen[bytes] | Forked
    file: IO[str]

    def ended(self) -> Ended:
        """How it ended; waits for that."""
        code = self.process.wait()
        self.file.seek(0)
        return Ended(code, self.file.read())


@contextmanager
def started(
    command: Sequence[str], world: int, folder: Path | None = None, forked: bool = False
) -> Iterator[list[Rank]]:
    """``command`` once a rank; those that still run are killed at the block's end.

    Args:
        command: see :func:`run_ranks`.
        world: number of ranks.
        folder: where they run.
        forked: they find the imports done, see :mod:`vla_train.testing.forks`; ``command`` is this Python,
            a file and its arguments.
    """
    # All before the first is asked, so that they import side by side.
    servers = [server(rank % 2) for rank in range(world)] if forked else []
    with ExitStack() as stack:
        port = str(stack.enter_context(reserved_port()))
        ranks: list[Rank] = []
        for rank in range(world):
            file = stack.enter_context(tempfile.TemporaryFile("w+"))
            env = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            process: subprocess.Popen[bytes] | Forked
            if forked:
                process = servers[rank].start(command[1:], env, folder, file)
            else:
                process = subprocess.Popen(
                    command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=file
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            ranks.append(Rank(process, file))
        yield ranks


def wait(ranks: Sequence[Rank], end: float) -> None:
    """Until all have ended, or until ``end`` (monotonic)."""
    while any(rank.process.poll() is None for rank in ranks) and time.monotonic() < end:
        time.sleep(0.05)
