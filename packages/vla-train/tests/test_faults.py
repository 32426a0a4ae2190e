"""Faults of a run that no other file of tests has: a small disk, a state that is damaged, NaN on one rank."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from vla_core.policy import VLAPolicy
from vla_train.checkpointing import resume
from vla_train.cli import main
from vla_train.testing.ranks import run_ranks
from vla_train.trainer import Trainer

COMMON = ("trackers=[jsonl]", "trainer.schedule=constant", "datasets.val_fraction=0")


def call(config: Path, *words: str) -> int:
    return main(["--config", str(config), *COMMON, *words])


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_a_disk_that_runs_full_keeps_the_newest(
    toy_config: Path, small_disk: Path, capsys: pytest.CaptureFixture[str], beside: bool
) -> None:
    words = [f"run_root_dir={small_disk}", "trainer.save_every=1", "trainer.keep_checkpoints=0"]
    words += ["trainer.max_steps=200", f"trainer.async_save={beside}".lower(), "trainer.log_every=1000"]
    code = call(toy_config, *words)
    err = capsys.readouterr().err
    assert code == 2, err
    # torch's writer keeps the system's word to itself.
    assert "cannot be written (No space left on device)" in err or "cannot be written (no space, or" in err
    assert "is whole" in err
    assert "Traceback" not in err
    run = small_disk / "toy"
    state = resume.newest(run)
    assert state is not None
    assert not list(run.rglob("*.tmp*"))
    VLAPolicy.from_pretrained(run / "checkpoints" / state.name)


@pytest.mark.slow
def test_a_line_that_the_disk_has_no_room_for(
    toy_config: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer._step

    def fill(self: Trainer, number: int, *rest: Any) -> Any:
        if number == 3:
            with suppress(OSError), (small_disk / "of_others").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(512))
        return step(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", fill)
    words = [f"run_root_dir={small_disk}", "trainer.log_every=1", "trainer.max_steps=200"]
    assert call(toy_config, *words) == 2
    err = capsys.readouterr().err
    assert "metrics.jsonl: cannot be written (No space left on device)" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "run.json"])
def test_a_state_that_is_damaged_is_named(
    toy_config: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    assert call(toy_config, "trainer.max_steps=2") == 0
    path = toy_config.parent / "runs/toy/resume/steps_2" / file
    path.write_bytes(path.read_bytes()[:-40])
    assert call(toy_config, "trainer.resume=true") == 2
    err = capsys.readouterr().err
    assert "resume/steps_2: damaged" in err
    assert "trainer.pretrained_checkpoint" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_that_is_killed_is_named(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, killed = Trainer._step, []

    def kill(self: Trainer, number: int, *rest: Any) -> Any:
        if number == 3:
            (worker, *_) = multiprocessing.active_children()
            worker.kill()
            killed.append(time.monotonic())
        return step(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", kill)
    assert call(toy_config, "datasets.num_workers=2", "trainer.max_steps=100000") == 2
    assert time.monotonic() - killed[0] < 30
    err = capsys.readouterr().err
    assert "a loader worker died: " in err
    assert "lower datasets.num_workers; nothing was saved yet (trainer.save_every)" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_nan_on_one_of_two_ranks_ends_both(toy_config: Path, two_ranks: Any) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] |= {"transforms": [{"name": "normalize"}]}
    node["datasets"]["train"] = [{"name": "counted", "infinite": [8]}]
    node["trainer"] |= {"batch_size": 1, "save_every": 1, "warmup_steps": 0, "max_steps": 18}
    toy_config.write_text(yaml.safe_dump(node))
    command = two_ranks.command({"run": ["--config", str(toy_config), *COMMON]})
    out = run_ranks(command, folder=two_ranks.folder, forked=True)
    said = "".join(rank.said for rank in out)
    assert [rank.code for rank in out] == [2, 2], said
    (line,) = [line for line in said.splitlines() if line.startswith("vla-train: ")]
    assert "the loss or its gradient is not finite at step" in line
    assert "Traceback" not in said
    bad = int(line.partition("at step ")[2].partition(";")[0])
    run = two_ranks.folder / "runs" / "toy"
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {f"steps_{step}" for step in range(max(1, bad - 2), bad)}
