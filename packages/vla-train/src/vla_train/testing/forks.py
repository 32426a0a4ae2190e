"""Programs as forks of one that has imported torch, transformers and the trainer: a start in no time.

A start of its own costs fifteen seconds of imports, of which the program may need one. A fork is a process
like any other: of its own id, environment, folder, threads and signals, and ends as Python programs end.
What it shares with its siblings is the order of its sets, for it has their ``PYTHONHASHSEED``.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

IMPORTED = (
    "accelerate",
    "torch._dynamo",
    "transformers.modeling_utils",
    "vla_train.engine",
    "vla_train.report",
    "vla_train.trainer",
)
"""What a fork finds imported. Not deepspeed: how it is imported depends on the environment."""


class Forked:
    """A program that was forked; the part of :class:`subprocess.Popen` that tests use."""

    def __init__(self, server: Server, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """The exit code, negative by a signal, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ask({"ended": self.pid})
        return self.returncode

    def wait(self) -> int:
        """Until it has ended."""
        while (code := self.poll()) is None:
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Unless it has ended."""
        self.send_signal(signal.SIGKILL)


class Server:
    """The program that forks, from the tests' side; it ends with them."""

    def __init__(self) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=pipe, stdout=pipe, text=True
        )
        atexit.register(self._process.kill)

    def ask(self, request: Mapping[str, Any]) -> Any:
        """One line of JSON there and one back."""
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        to.write(json.dumps(request) + "\n")
        to.flush()
        return json.loads(back.readline())

    def start(
        self, words: Sequence[str], env: Mapping[str, str], folder: Path | None, errors: IO[str]
    ) -> Forked:
        """Run a Python file.

        Args:
            words: the file and its arguments.
            env: the whole environment.
            folder: where it runs.
            errors: what gets its standard error; its output goes nowhere.
        """
        # The server opens the file anew: a descriptor does not go through a pipe.
        path = f"/proc/{os.getpid()}/fd/{errors.fileno()}"
        request = {
            "words": list(words),
            "env": dict(env),
            "folder": str(folder or Path.cwd()),
            "errors": path,
        }
        return Forked(self, self.ask(request))


@cache
def server(number: int) -> Server:
    """One of several, which order their sets differently: ranks must not agree on that."""
    return Server()


def serve() -> None:
    """Answer requests to their end; a fork returns from :func:`run` as its program does."""
    for name in IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "threads do not survive a fork"
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        answer: int | None
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                run(request)
                return
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def run(request: Mapping[str, Any]) -> None:
    """Be the program, in the fork."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    errors = os.open(request["errors"], os.O_WRONLY | os.O_APPEND)
    for descriptor, source in ((0, nowhere), (1, nowhere), (2, errors)):
        os.dup2(source, descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    sys.argv = request["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve()
