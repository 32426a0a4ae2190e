"""A process that was started ends with the one that started it, also where that is killed."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vla_core.parent import end_with_parent
from vla_core.testing.processes import running

POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from vla_core.parent import end_with_parent

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        if sys.argv[1] == "busy":
            pool.submit(time.sleep, 120)
        time.sleep(120)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("does", ["nothing", "busy"])
def test_a_killed_program_leaves_no_process_behind(tmp_path: Path, does: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(POOL, "utf-8")
    with subprocess.Popen([sys.executable, str(program), does], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        assert running(pid)
        started.kill()
    end = time.monotonic() + 60
    while running(pid):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_nothing_happens_in_a_program_of_its_own() -> None:
    assert multiprocessing.parent_process() is None
    end_with_parent()
