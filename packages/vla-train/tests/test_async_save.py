"""Saves beside the training: the same files, whole at every moment, and what goes wrong is said."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from vla_core.files import recover_directories
from vla_core.policy import VLAPolicy
from vla_core.testing.kills import killed_at
from vla_train.checkpointing import resume
from vla_train.checkpointing.saving import Saver
from vla_train.checkpointing.snapshots import Snapshots
from vla_train.cli import main
from vla_train.composition import compose
from vla_train.presets import load_run_tree
from vla_train.trainer import Trainer

COMMON = ("trackers=[jsonl]", "trainer.schedule=constant", "trainer.precision=bf16", "trainer.ema_decay=0.5")


def call(config: Path, *words: str) -> int:
    return main(["--config", str(config), *COMMON, *words])


def test_a_copy_is_one_of_its_moment_and_takes_its_room_once() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    state = {
        "a": weight,
        "tied": weight,
        "turned": weight.T,
        "none": torch.zeros(0),
        "step": 3,
        "more": [weight[0]],
    }
    snapshots = Snapshots()
    first = snapshots.take(state, "model")
    weight += 1
    assert torch.equal(first["a"], weight - 1)
    assert torch.equal(first["turned"], weight.T - 1)
    assert first["tied"] is first["a"]
    assert first["step"] == 3
    second = snapshots.take(state, "model")
    assert second["a"] is first["a"]
    assert torch.equal(second["more"][0], weight[0])


@pytest.mark.slow
def test_the_files_are_those_of_a_save_that_is_waited_for(toy_config: Path) -> None:
    words = ("trainer.save_every=1", "trainer.keep_checkpoints=0", "trainer.keep_best=val/action_mae")
    assert call(toy_config, *words, "run_id=now") == 0
    assert call(toy_config, *words, "run_id=beside", "trainer.async_save=true", "trainer.max_steps=4") == 0
    assert call(toy_config, *words, "run_id=beside", "trainer.async_save=true", "trainer.resume=true") == 0
    now, beside = (toy_config.parent / "runs" / name for name in ("now", "beside"))
    files = {
        str(path.relative_to(now))
        for folder in ("checkpoints", "resume")
        for path in (now / folder).rglob("*")
    }
    assert files == {
        str(path.relative_to(beside))
        for folder in ("checkpoints", "resume")
        for path in (beside / folder).rglob("*")
    }
    weights = [name for name in files if name.endswith("model.safetensors")]
    assert len(weights) == 10
    for name in weights:
        one, other = load_file(now / name), load_file(beside / name)
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    for name in ("optimizer.bin", "custom_checkpoint_0.pkl"):
        one, other = (torch.load(run / "resume/steps_8" / name, weights_only=False) for run in (now, beside))
        assert same(one, other), name


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_no_space_ends_the_run_between_two_steps(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(toy_config, "trainer.max_steps=2") == 0
    # Where pytest keeps what is printed is a file too, and may be longer already.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_288, before[1]))
    try:
        words = (
            "trainer.resume=true",
            "trainer.async_save=true",
            "trainer.max_steps=300",
            "trainer.save_every=4",
        )
        code = call(
            toy_config, *words, "trainer.val_every=0", "trainer.log_every=1000", "datasets.num_workers=0"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2
    err = capsys.readouterr().err
    assert "steps_4: cannot be written" in err
    assert "is whole" in err
    assert "Traceback" not in err
    run = toy_config.parent / "runs" / "toy"
    VLAPolicy.from_pretrained(run / "checkpoints" / "steps_2")
    assert [path.name for path in (run / "resume").glob("steps_*")] == ["steps_2"]


def test_a_signal_waits_for_the_save(toy_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer._step

    def signalled(self: Trainer, number: int, *rest: Any) -> Any:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", signalled)
    assert call(toy_config, "trainer.async_save=true") == 75
    run = toy_config.parent / "runs" / "toy"
    VLAPolicy.from_pretrained(run / "checkpoints" / "steps_3")
    assert json.loads((run / "resume" / "steps_3" / "run.json").read_text())["world"] == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a killed save is a killed process")
def test_fifty_kills_leave_a_whole_checkpoint_and_state(toy_config: Path) -> None:
    torch.set_num_threads(1)
    words = [*COMMON, "trainer.async_save=true", "trainer.max_steps=1"]
    assert main(["--config", str(toy_config), *words, "trainer.async_save=false"]) == 0
    run = toy_config.parent / "runs" / "toy"
    trainer = Trainer(compose(load_run_tree([toy_config], words)), run)

    def save() -> None:
        # The thread is made in the process that is killed.
        saver = Saver(trainer.composed, trainer.engine, run)
        final = saver.write(2, run / "checkpoints" / "steps_2")
        saver.forget_old(final)
        saver.resume_state(2, {})
        saver.writer.wait()

    most = 1
    while killed_at(save, run, most):
        most *= 2
    points, kills = random.Random(0), 0
    for _ in range(50):
        kills += killed_at(save, run, points.randint(1, most))
        state = resume.newest(run)
        assert state is not None
        assert state.name in ("steps_1", "steps_2")
        trainer.engine.load(state)
        VLAPolicy.from_pretrained(run / "checkpoints" / state.name)
    assert kills > 20, "the points must be many, or they are not seen"
    for folder in (run / "checkpoints", run / "resume"):
        recover_directories(folder)
        assert {path.name for path in folder.iterdir()} <= {"steps_1", "steps_2"}


@pytest.mark.slow
def test_two_ranks_save_beside_their_training(toy_config: Path, two_ranks: Any) -> None:
    words = ["--config", str(toy_config), *COMMON, "trainer.batch_size=2", "datasets.val_fraction=0"]
    beside = [*words, "trainer.async_save=true", "trainer.save_every=2", "run_id=beside"]
    two_ranks.launch(
        {
            "now": [*words, "run_id=now"],
            "begun": [*beside, "trainer.max_steps=4"],
            "beside": [*beside, "trainer.resume=true"],
        }
    )
    runs = toy_config.parent / "runs"
    one, other = (
        load_file(runs / name / "checkpoints/steps_8/model.safetensors") for name in ("now", "beside")
    )
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    states = sorted(path.name for path in (runs / "beside" / "resume" / "steps_8").glob("random_states_*"))
    assert states == ["random_states_0.pkl", "random_states_1.pkl"]
