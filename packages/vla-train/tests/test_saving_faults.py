"""What goes wrong on the way: no space, no memory, no state, and what a killed save leaves behind."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from vla_core.policy import VLAPolicy
from vla_train.checkpointing.saving import Saver
from vla_train.cli import main
from vla_train.engine import Engine


def call(config: Path, *words: str) -> int:
    return main(["--config", str(config), "trackers=[jsonl]", "trainer.val_every=0", *words])


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within the block a larger file cannot be written, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("what", ["checkpoint", "state"])
def test_no_space_keeps_what_is_there(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    owner, name = (Saver, "write") if what == "checkpoint" else (Engine, "save")
    real, calls = getattr(owner, name), []

    def full(*args: object) -> object:
        calls.append(args)
        if len(calls) < 2:
            return real(*args)
        with files_of_at_most(8192):
            return real(*args)

    monkeypatch.setattr(owner, name, full)
    # Where pytest keeps what is printed is a file too, and may be longer already.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    assert call(toy_config, "trainer.save_every=4", "datasets.val_fraction=0") == 2
    err = capsys.readouterr().err
    assert "cannot be written" in err
    assert "is whole" in err
    assert "Traceback" not in err
    run = toy_config.parent / "runs" / "toy"
    VLAPolicy.from_pretrained(run / "checkpoints" / "steps_4")
    monkeypatch.undo()
    assert (run / "resume" / "steps_4" / "run.json").is_file()


def test_after_a_killed_save_the_run_goes_on_and_tidies_up(toy_config: Path) -> None:
    assert call(toy_config, "trainer.max_steps=4") == 0
    run = toy_config.parent / "runs" / "toy"
    (run / "checkpoints" / ".steps_8.tmp-1").mkdir()
    (run / "resume" / ".steps_8.tmp").mkdir()
    assert call(toy_config, "trainer.resume=true", "trainer.schedule=constant") == 0
    names = sorted(p.name for folder in ("checkpoints", "resume") for p in (run / folder).iterdir())
    assert names == ["steps_4", "steps_8", "steps_8"]


def test_a_run_without_state_keeps_checkpoints_alone(
    toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(toy_config, "trainer.save_resume=false", "trainer.max_steps=2") == 0
    run = toy_config.parent / "runs" / "toy"
    assert (run / "checkpoints" / "steps_2").is_dir()
    assert not (run / "resume").exists()
    assert call(toy_config, "trainer.resume=true") == 2
    assert "has no resume state" in capsys.readouterr().err


def test_out_of_memory_says_what_takes_less(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(Engine, "forward", full)
    assert call(toy_config, "trainer.precision=bf16") == 2
    err = capsys.readouterr().err
    assert "out of GPU memory in step 1 (CUDA out of memory. Tried to allocate 2.00 GiB.); memory of" in err
    # A toy has nothing that could be saved.
    assert "at the peak; about 2.0 GiB are missing, and nothing alone is enough" in err


def test_the_same_run_again_is_a_program(toy_config: Path) -> None:
    assert call(toy_config, "trainer.max_steps=2") == 0
    again = toy_config.parent / "runs" / "toy" / "rerun.sh"
    assert os.access(again, os.X_OK)
    done = subprocess.run([str(again), "--help"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--dry_run" in done.stdout
    assert sys.executable in again.read_text()


def test_a_dry_run_shows_table_and_batch_and_writes_nothing(
    toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(toy_config, "--dry_run") == 0
    said = capsys.readouterr().out
    for words in ("precision fp32", "memory of one process of 1", "images", "actions", "in order"):
        assert words in said, words
    assert not (toy_config.parent / "runs").exists()
    assert call(toy_config, "--dry_run", "trainer.freeze_modules=[hat]") == 2
    assert json.dumps("hat")[1:-1] in capsys.readouterr().err
