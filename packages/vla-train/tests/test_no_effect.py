"""What is set where nothing reads it is said, and what can only come to nothing is refused, at a dry run."""

from __future__ import annotations

from pathlib import Path

import pytest
from vla_train.cli import main

DRY = ("--dry_run", "trainer.max_steps=8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.decay_ratio=0.3"], ["decay_ratio has no effect: it is of trainer.schedule: wsd"]),
        (["trainer.decay_ratio=0.3", "trainer.schedule=wsd"], []),
        (
            ["trainer.min_lr_ratio=0.2", "trainer.schedule=constant"],
            ["min_lr_ratio has no effect: trainer.schedule is constant"],
        ),
        (
            ["trainer.warmup_steps=3", "trainer.warmup_ratio=0.1"],
            ["warmup_steps has no effect: trainer.warmup_ratio goes before"],
        ),
        (
            ["trainer.save_resume=false", "trainer.keep_states=3"],
            ["keep_states has no effect: trainer.save_resume is false"],
        ),
        (
            ["datasets.val_fraction=0", "trainer.val_every=3", "trainer.val_samples=7"],
            ["val_every has no effect: no episode is held out", "val_samples has no effect: no episode"],
        ),
        (["trainer.save_every=9"], ["save_every has no effect: the last step is 8, which has it anyway"]),
        (["trainer.save_every=8"], []),
        (
            ["trainer.evaluation.every=3"],
            ["evaluation.every has no effect: trainer.evaluation.tasks names none"],
        ),
    ],
)
def test_what_has_no_effect_is_said(
    toy_config: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: list[str]
) -> None:
    base = ["trainer.schedule=cosine", "trainer.warmup_steps=500", "trainer.val_every=500"]
    base += ["trainer.min_lr_ratio=0.01", "trainer.val_samples=256", "trainer.save_every=0"]
    assert main(["--config", str(toy_config), *DRY, *base, *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "has no effect" in line]
    assert len(lines) == len(said), lines
    for line, words_of in zip(lines, said, strict=True):
        assert line.startswith(f"trainer.{words_of}"), line


def test_auto_without_states_is_refused(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("trainer.resume=auto", "trainer.save_resume=false", "run_id=x")
    assert main(["--config", str(toy_config), *DRY, *words]) == 2
    assert "trainer.save_resume=false keeps nothing to go on from" in capsys.readouterr().err


def test_a_dry_run_says_what_the_run_says(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("trainer.batch_size=4", "trainer.gradient_accumulation_steps=2", "trackers=[jsonl]")
    assert main(["--config", str(toy_config), *DRY, *words]) == 0
    dry = capsys.readouterr().out.splitlines()
    assert "1 process (one process), effective batch size 8 = 4 samples x 2 micro-batches x 1" in dry
    (length,) = (line for line in dry if line.startswith("8 steps, 64 samples: "))
    assert length.endswith(" epochs")
    assert main(["--config", str(toy_config), "trainer.max_steps=8", *words]) == 0
    wet = capsys.readouterr().out.splitlines()
    until = next(i for i, line in enumerate(wet) if line.startswith("step "))
    assert [line for line in wet[:until] if line not in dry] == []
    # Of a run that is over it says so.
    assert main(["--config", str(toy_config), *DRY, *words, "trainer.resume=true"]) == 0
    again = capsys.readouterr().out
    assert "goes on after step 8 and trainer.max_steps=8: none is left" in again
    assert again.rstrip().endswith("would go on")


def test_lists_on_the_command_line(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def err(*words: str) -> str:
        assert main(["--config", str(toy_config), *DRY, *words]) == 2
        return capsys.readouterr().err.strip()

    assert err("datasets.train.4.path=x").endswith(
        "'datasets.train' has 1 entry, and it has index 0; 4 is none"
    )
    # What an entry was given goes with the list that a later word replaces.
    assert "'datasets.train' must list at least one" in err("datasets.train.0.weight=2", "datasets.train=[]")
    assert err("trainers.max_steps=3").startswith("vla-train: command line: unknown key 'trainers' (did you")
    huge = err("trainer.batch_size=999999999999")
    assert "trainer.batch_size: the pictures of 999999999999 samples take " in huge
