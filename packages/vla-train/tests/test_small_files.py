"""A disk without room for the small files of a run: one line, before the first step or after the last."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vla_core.errors import UserError
from vla_train import runs
from vla_train.checkpointing.small_files import into, write_json
from vla_train.cli import main

FULL = OSError(errno.ENOSPC, "No space left on device")
WORDS = ("trackers=[jsonl]", "trainer.max_steps=2")


def full(*args: Any, **options: Any) -> None:
    raise FULL


def test_what_was_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(UserError, match=r"run: cannot be written \(No space left on device\)"),
        into(Path("run")),
    ):
        write_json(path, {"a": 2})
    assert json.loads(path.read_bytes()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start(
    toy_config: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "other").write_bytes(b"x" * (2**20 - 4096))
    assert main(["--config", str(toy_config), *WORDS, f"run_root_dir={small_disk}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"vla-train: {small_disk}/toy: cannot be written (No space left on device)")


@pytest.mark.parametrize(
    ("module", "name", "what"),
    [(np, "savez_compressed", "toy/predictions.npz"), (runs, "write_report", "toy/report.html")],
)
def test_a_disk_that_is_full_at_the_end(
    toy_config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: Any,
    name: str,
    what: str,
) -> None:
    if module is np:
        monkeypatch.setattr(runs, "save_seen", lambda *args: None)  # another file of numpy's
    monkeypatch.setattr(module, name, full)
    assert main(["--config", str(toy_config), *WORDS]) == 2
    error = capsys.readouterr().err
    assert f"{what}: cannot be written (No space left on device)" in error
    assert error.count("\n") == 1
    assert (toy_config.parent / "runs" / "toy" / "checkpoints" / "steps_2" / "meta.json").is_file()
