"""Which engine goes on from whose state, with how many processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vla_core.errors import UserError
from vla_train.cli import main
from vla_train.compare import check_engine
from vla_train.engine import Engine


def engine(name: str, world: int) -> Engine:
    made = Engine.__new__(Engine)
    made.name, made.world = name, world
    return made


def state(tmp_path: Path, **facts: str | int) -> Path:
    folder = tmp_path / "run" / "resume" / "steps_4"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize(
    ("wrote", "reads"),
    [
        (("DDP", 2), ("one process", 1)),
        (("one process", 1), ("DDP", 4)),
        (("FSDP2", 2), ("FSDP2", 1)),
        (("FSDP2", 1), ("FSDP2", 4)),
        (("DeepSpeed ZeRO-2", 2), ("DeepSpeed ZeRO-2", 3)),
        (("DeepSpeed ZeRO-3", 2), ("DeepSpeed ZeRO-3", 1)),
    ],
)
def test_who_reads_what(tmp_path: Path, wrote: tuple[str, int], reads: tuple[str, int]) -> None:
    check_engine(state(tmp_path, engine=wrote[0], world=wrote[1]), engine(*reads))


@pytest.mark.parametrize(
    ("wrote", "reads", "said"),
    [
        (
            ("DDP", 2),
            ("FSDP2", 2),
            "by 2 processes of DDP, and this is 2 processes of FSDP2; one process or DDP",
        ),
        (("FSDP2", 2), ("one process", 1), "by 2 processes of FSDP2, and this is one process; torchrun"),
        (
            ("DeepSpeed ZeRO-2", 2),
            ("one process", 1),
            "by 2 processes of DeepSpeed ZeRO-2, and this is one process; accelerate launch with its "
            "file and --num_processes N goes on from it",
        ),
        (
            ("DeepSpeed ZeRO-3", 2),
            ("one process", 1),
            "by 2 processes of DeepSpeed ZeRO-3, and this is one process; accelerate launch with its "
            "file and --num_processes N goes on from it",
        ),
        (
            ("DeepSpeed ZeRO-1", 2),
            ("DeepSpeed ZeRO-2", 2),
            "by 2 processes of DeepSpeed ZeRO-1, and this is 2 processes of DeepSpeed ZeRO-2",
        ),
    ],
)
def test_who_does_not(tmp_path: Path, wrote: tuple[str, int], reads: tuple[str, int], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_engine(state(tmp_path, engine=wrote[0], world=wrote[1]), engine(*reads))
    assert f"steps_4 was written {said}" in str(error.value)
    assert str(error.value).endswith("checkpoints/steps_4 starts from its weights")


def test_a_state_of_before_it_was_noted(tmp_path: Path) -> None:
    check_engine(state(tmp_path, world=2), engine("DDP", 2))


def test_it_is_noted_and_looked_at_before_a_dry_run(
    toy_config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config", str(toy_config), "trainer.max_steps=2", "trackers=[jsonl]"]
    assert main(words) == 0
    facts = json.loads((toy_config.parent / "runs" / "toy" / "resume" / "steps_2" / "run.json").read_text())
    assert (facts["engine"], facts["world"]) == ("one process", 1)
    monkeypatch.setattr("vla_train.checkpointing.resume.recall", lambda path: {"engine": "FSDP2", "world": 2})
    assert main([*words, "trainer.resume=true", "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert "was written by 2 processes of FSDP2, and this is one process; torchrun" in error
