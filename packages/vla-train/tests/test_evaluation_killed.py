"""A training that is killed leaves none of the programs behind that evaluate it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vla_core.testing.processes import running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own")

STARTS = """
import sys, time
from vla_train.evaluation.evaluate import _running

program = [sys.executable, "-c", "import time; print('runs', flush=True); time.sleep(120)"]
with open(sys.argv[1], "wb") as log, _running(program, log) as process:
    print(process.pid, flush=True)
    time.sleep(120)
"""


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("at", ["once", "later"])
def test_what_evaluates_ends_with_a_training_that_is_killed(tmp_path: Path, at: str) -> None:
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", STARTS, str(log)], stdout=subprocess.PIPE) as training:
        assert training.stdout is not None
        pid = int(training.stdout.readline())
        if at == "later":
            until(lambda: log.read_bytes() == b"runs\n")
            assert running(pid)
        training.send_signal(signal.SIGKILL)
    until(lambda: not running(pid))
