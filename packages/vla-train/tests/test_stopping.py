"""A signal, wherever the run is: what takes long is broken off, programs end, and how to go on is said."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from vla_core.errors import UserError
from vla_train import runs
from vla_train.checkpointing.resume import run_directory
from vla_train.cli import main
from vla_train.engine import Engine
from vla_train.evaluation import evaluate
from vla_train.guards.stopping import Stop
from vla_train.monitoring.progress import ProgressBar
from vla_train.trainer import Trainer

SERVER = """
import os, pathlib, signal, sys, time
words = sys.argv
pathlib.Path(os.environ["PIDS"], "server").write_text(str(os.getpid()))
pathlib.Path(words[words.index("--port_file") + 1]).write_text("1")
time.sleep(1000)
"""
ROLLOUT = """
import os, pathlib, signal, time
pathlib.Path(os.environ["PIDS"], "rollout").write_text(str(os.getpid()))
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(1000)
"""
"""It would last for ever, and sends the run a signal."""
ASKED = "trainer.evaluation={env: none, tasks: [a], episodes: 1}"


def call(config: Path, *words: str) -> int:
    return main(["--config", str(config), "trackers=[jsonl]", *words])


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of vla-serve and vla-rollout; where they write who they are."""
    for name, text in (("vla-serve", SERVER), ("vla-rollout", ROLLOUT)):
        (tmp_path / name).write_text(f"#!{sys.executable}\n{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(evaluate, "_program", lambda name: str(tmp_path / name))
    monkeypatch.setattr(runs, "check_evaluation", lambda *args: None)
    monkeypatch.setenv("PIDS", str(tmp_path))
    return tmp_path


def are_gone(programs: Path) -> bool:
    for name in ("server", "rollout"):
        pid = int((programs / name).read_text())
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        return False
    return True


def test_a_signal_in_the_closed_loop_at_the_end(
    toy_config: Path, programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(toy_config, ASKED) == 75
    run = toy_config.parent / "runs" / "toy"
    when = "stopped by a signal in the closed loop after step 8"
    ways = "go on with run_id=toy trainer.resume=true"
    assert capsys.readouterr().err == f"vla-train: {when}; {run}/checkpoints/steps_8 is whole; {ways}\n"
    assert are_gone(programs)
    assert (run / "report.html").is_file()
    # What is left of the run is the closed loop.
    capsys.readouterr()
    assert call(toy_config, ASKED, "trainer.resume=true") == 75
    assert "none is left" in capsys.readouterr().out


def test_a_signal_in_a_closed_loop_while_training(
    toy_config: Path, programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(toy_config, ASKED, "trainer.evaluation.every=2", "trainer.val_every=0") == 75
    said = capsys.readouterr()
    assert "step 2  closed loop: broken off by a signal" in said.out
    assert "stopped by a signal after step 2; " in said.err
    assert are_gone(programs)
    assert (toy_config.parent / "runs/toy/resume/steps_2/run.json").is_file()


def test_a_program_that_the_signal_ended_first_is_no_failure(
    toy_config: Path, programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A group of processes has its signal at once."""
    rollout = programs / "vla-rollout"
    rollout.write_text(
        rollout.read_text().replace("time.sleep(1000)", "os.kill(os.getpid(), signal.SIGTERM)")
    )
    assert call(toy_config, ASKED) == 75
    assert "failed" not in capsys.readouterr().err


def test_a_signal_breaks_off_a_validation(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def signalled(self: ProgressBar, text: str) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(ProgressBar, "under_way", signalled)
    assert call(toy_config, "trainer.ema_decay=0.5", "trainer.keep_best=val/action_mae") == 75
    assert "stopped by a signal after step 4; " in capsys.readouterr().err
    run = toy_config.parent / "runs" / "toy"
    assert "val/loss" not in (run / "metrics.jsonl").read_text()
    monkeypatch.undo()
    assert (
        call(toy_config, "trainer.ema_decay=0.5", "trainer.keep_best=val/action_mae", "trainer.resume=true")
        == 0
    )
    assert "val/loss" in (run / "metrics.jsonl").read_text()


def test_all_ranks_hear_of_a_signal_one_step_later(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Engine):
        """The second of two ranks; the first was signalled."""

        def __init__(self) -> None:
            self.world, self.device = 2, torch.device("cpu")

        def sum(self, tensor: Any) -> Any:
            return tensor + 1

    class Done:
        def wait(self) -> None: ...

    def signalled(tensor: torch.Tensor, async_op: bool) -> Done:
        assert async_op
        tensor += 1
        return Done()

    monkeypatch.setattr(torch.distributed, "all_reduce", signalled)
    stop = Stop(Two())
    stop.ask()
    assert not stop.agreed
    stop.ask()
    assert stop.agreed
    assert not stop.signalled
    assert Stop(Two()).now()


def stopped(config: Path, monkeypatch: pytest.MonkeyPatch, how: Any, *words: str) -> int:
    step = Trainer._step

    def ended(self: Trainer, number: int, *rest: Any) -> Any:
        if number == 3:
            how()
        return step(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", ended)
    code = call(config, *words)
    monkeypatch.undo()
    return code


def interrupt() -> None:
    raise KeyboardInterrupt


def test_how_to_go_on_is_what_there_is_to_go_on_from(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``trainer.resume=true`` was advised where nothing was saved, or no state is kept."""
    runs_ = toy_config.parent / "runs"
    signalled = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    stateless = ("trainer.save_resume=false", "run_id=stateless")
    assert stopped(toy_config, monkeypatch, signalled, *stateless) == 75
    err = capsys.readouterr().err
    assert "no state to go on from is kept (trainer.save_resume); another run_id with trainer." in err
    assert f"pretrained_checkpoint={runs_}/stateless/checkpoints/steps_3 starts from its weights" in err
    assert stopped(toy_config, monkeypatch, interrupt, "run_id=early") == 130
    assert capsys.readouterr().err == "vla-train: interrupted; nothing was saved yet (trainer.save_every)\n"
    assert stopped(toy_config, monkeypatch, interrupt, "run_id=later", "trainer.save_every=2") == 130
    assert capsys.readouterr().err == "vla-train: interrupted; go on with run_id=later trainer.resume=true\n"
    assert call(toy_config, "run_id=later", "trainer.resume=true") == 0


def test_a_taken_name_says_what_there_is_to_go_on_from(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="has no resume state; nothing was saved yet"):
        run_directory(str(tmp_path), "run", resuming=True)
    (run / "checkpoints" / "steps_5").mkdir(parents=True)
    for resuming, said in ((False, "holds a run already"), (True, "has no resume state")):
        with pytest.raises(UserError, match=f"{said}; .*checkpoints/steps_5 starts from its weights"):
            run_directory(str(tmp_path), "run", resuming=resuming)
    (run / "resume" / "steps_5").mkdir(parents=True)
    with pytest.raises(UserError, match=r"or: go on with run_id=run trainer\.resume=true"):
        run_directory(str(tmp_path), "run", resuming=False)
