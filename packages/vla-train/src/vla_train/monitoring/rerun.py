"""How a run was started, by which launcher, and the script that starts it again under another name."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

KEPT = ("DS_ACCELERATOR",)
"""Variables that decide what a launcher's processes run on, and that no option of it sets."""


def launcher(argv: Sequence[str], env: Mapping[str, str], parent: Sequence[str]) -> list[str]:
    """The words before ``argv`` that start all processes of this run; empty: it is one, started by itself.

    Args:
        argv: of this process, without the program.
        env: of this process.
        parent: words of the process that started it; empty: not known.
    """
    if "WORLD_SIZE" not in env:
        return []
    if argv and list(parent[-len(argv) :]) == list(argv):
        return list(parent[: -len(argv)])
    count = env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", count, "-m", "vla_train"]


def parents_words() -> list[str]:
    """The command line of the process that started this one, where the system tells it (Linux)."""
    path = Path(f"/proc/{os.getppid()}/cmdline")
    try:
        return [os.fsdecode(word) for word in path.read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def command(argv: Sequence[str], started: Sequence[str]) -> str:
    """One line for people; ``started``: of :func:`launcher`."""
    words = list(started) or ["vla-train"]
    if len(words) > 1 and Path(words[0]).name.startswith("python") and words[1] != "-m":
        words = [Path(words[1]).name, *words[2:]]  # a launcher's script, not the Python that runs it
    return shlex.join([*words, *argv])


def script(argv: Sequence[str], started: Sequence[str], run_id: str, anew: bool) -> str:
    """A shell script that starts the same run beside this one.

    Args:
        argv: of the run.
        started: of :func:`launcher`.
        run_id: its name.
        anew: it went on from a state, and the other one has none.
    """
    own = [f"run_id={run_id}-again", *(["trainer.resume=false"] if anew else [])]
    words = [*(started or [sys.executable, "-m", "vla_train"]), *argv, *own]
    lines = ["#!/bin/sh", "# The same run under another name.", f"cd {shlex.quote(os.getcwd())} || exit 1"]
    lines += [f"export {name}={shlex.quote(os.environ[name])}" for name in KEPT if name in os.environ]
    return "\n".join([*lines, f'{shlex.join(words)} "$@"', ""])
