"""Signals to the whole process group, as clusters send them, with real loader workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vla_core.testing.processes import running

HERE = Path(__file__).parent
# What `-m vla_train` runs, with the toy source known there too.
PROGRAM = """
import importlib.util, sys
from vla_core.registry import override
from vla_core.testing import register_fakes
spec = importlib.util.spec_from_file_location("toy", {conftest!r})
toy = sys.modules["toy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
override("vla.sources", "toy", toy.ToySource)
fakes = register_fakes(); fakes.__enter__()
from vla_train.cli import main
sys.exit(main(sys.argv[1:]))
"""


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def training(config: Path) -> Iterator[subprocess.Popen[str]]:
    """The program in a group of its own, in the middle of training with two workers."""
    program = config.parent / "program.py"
    program.write_text(PROGRAM.format(conftest=str(HERE / "conftest.py")))
    words = ["trainer.max_steps=1000000", "trainer.val_every=0", "trainer.log_every=1"]
    words += ["datasets.num_workers=2", "trackers=[jsonl]"]
    process = subprocess.Popen(
        [sys.executable, str(program), "--config", str(config), *words],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = config.parent / "runs" / "toy" / "metrics.jsonl"
    try:
        until(lambda: process.poll() is not None or (metrics.exists() and metrics.stat().st_size > 0))
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_group_saves_and_leaves(toy_config: Path, number: signal.Signals) -> None:
    with training(toy_config) as process:
        workers = children(process.pid)
        assert len(workers) >= 2
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 75, err
        assert "stopped by a signal" in err
        assert len(err.strip().splitlines()) == 1
        until(lambda: not any(map(running, workers)))
    checkpoints = toy_config.parent / "runs" / "toy" / "checkpoints"
    assert [p.name.startswith("steps_") for p in checkpoints.iterdir()] == [True]
