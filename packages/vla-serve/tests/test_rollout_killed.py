"""A rollout that is killed leaves no simulator behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from vla_core.testing.processes import running

STARTS = """
import os, time
from vla_serve.rollouts.pool import _start

def work(pipe):
    pipe.send(os.getpid())
    time.sleep(120)

if __name__ == "__main__":
    process, pipe = _start(work)
    print(pipe.recv(), flush=True)
    time.sleep(120)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_simulator_ends_with_the_rollout(tmp_path: Path, how: str) -> None:
    """It would finish its episode, and wait two minutes for its server before that."""
    program = tmp_path / "program.py"
    program.write_text(STARTS, "utf-8")
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        assert running(pid)
        getattr(started, how)()
    end = time.monotonic() + 60
    while running(pid):
        assert time.monotonic() < end
        time.sleep(0.02)
