"""``trainer.resume: auto`` steps back over damaged states, with one line, and removes none of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from vla_train.cli import main
from vla_train.testing.ranks import run_ranks

COMMON = ("trackers=[jsonl]", "trainer.schedule=constant", "datasets.val_fraction=0", "trainer.resume=auto")


def call(config: Path, *words: str) -> int:
    return main(["--config", str(config), *COMMON, *words])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def other_number(file: Path) -> None:
    """What is still JSON."""
    text = file.read_text()
    assert '"samples_a_step": ' in text
    file.write_text(text.replace('"samples_a_step": ', '"samples_a_step": 1'))


DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "short": ("model.safetensors", cut, "model.safetensors has "),
    "changed": ("optimizer.bin", flip, "optimizer.bin has another checksum"),
    "missing": ("optimizer.bin", Path.unlink, "optimizer.bin is missing"),
    "no list": ("run.json", cut, "run.json: "),
    "another step": ("run.json", other_number, "run.json: another checksum"),
}


@pytest.mark.slow
def test_a_damaged_newest_state_costs_the_steps_since_the_one_before(
    toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = toy_config.parent / "runs"
    assert call(toy_config, "trainer.max_steps=4", "trainer.save_every=2") == 0
    names = {path.name for path in (runs / "toy" / "resume").iterdir()}
    assert names == {"steps_2", "steps_4"}
    for name, (file, spoil, why) in DAMAGE.items():
        run = runs / f"toy_{name}"
        shutil.copytree(runs / "toy", run)
        spoil(run / "resume" / "steps_4" / file)
        words = ("trainer.max_steps=6", f"run_id={run.name}")
        capsys.readouterr()
        # Asked for by name it is an error, and nothing changes.
        assert call(toy_config, *words, "trainer.resume=true") == 2, name
        assert "resume/steps_4: damaged" in capsys.readouterr().err, name
        assert call(toy_config, *words) == 0, name
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
        assert "resume/steps_4 is damaged" in line
        assert why in line
        assert line.endswith("going on from steps_2, 2 steps earlier")
        left = {path.name for path in (run / "resume").iterdir()}
        assert left == {"steps_2", "steps_6", "damaged_steps_4"}, name


def test_without_a_whole_state_it_starts_anew_beside_what_is_there(
    toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = toy_config.parent / "runs" / "toy"
    assert call(toy_config, "trainer.max_steps=2", "trainer.save_every=1") == 0
    for step in (1, 2):
        cut(run / "resume" / f"steps_{step}" / "optimizer.bin")
    assert main(["--config", str(toy_config), *COMMON, "trainer.max_steps=1", "--dry_run"]) == 0
    assert (run / "resume" / "steps_2").is_dir()
    capsys.readouterr()
    assert call(toy_config, "trainer.max_steps=1") == 0
    said = capsys.readouterr().out
    assert said.count("no older state is whole, so the run starts anew") == 2
    assert (run.with_name("toy.damaged") / "resume" / "steps_2").is_dir()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["steps_1"]


@pytest.mark.slow
def test_two_ranks_step_back_together_where_a_share_of_one_is_damaged(
    toy_config: Path, two_ranks: Any
) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] |= {"transforms": [{"name": "normalize"}]}
    node["trainer"] |= {"batch_size": 2, "save_every": 1, "keep_states": 3, "sharding": "fsdp2"}
    toy_config.write_text(yaml.safe_dump(node))
    words = ["--config", str(toy_config), *COMMON]
    two_ranks.launch({"run": [*words, "trainer.max_steps=3"]})
    run = toy_config.parent / "runs" / "toy"
    flip(run / "resume" / "steps_3" / "__1_0.distcp")
    (run / "resume" / "steps_2" / "__0_0.distcp").unlink()
    command = two_ranks.command({"again": [*words, "trainer.max_steps=4"]}, aloud={"again": True})
    out = run_ranks(command, folder=two_ranks.folder, forked=True)
    said = "".join(rank.said for rank in out)
    assert [rank.code for rank in out] == [0, 0], said
    said = "".join(said.split())
    for why, steps in (
        ("steps_3isdamaged(__1_0.distcphasanotherchecksumthanwhenitwaswritten)", "2steps"),
        ("steps_2isdamaged(__0_0.distcpismissing)", "1step"),
    ):
        assert said.count(f"{why};goingonfromsteps_1,{steps}earlier") == 1, said
    left = {path.name for path in (run / "resume").iterdir()}
    # Trained again from step 1 on.
    assert left == {"damaged_steps_3", "damaged_steps_2", "steps_2", "steps_3", "steps_4"}


def test_checkpoints_without_a_state_are_kept_beside_a_new_run(
    toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill between a first checkpoint and its state leaves them, or an earlier ``save_resume: false``."""
    runs = toy_config.parent / "runs"
    words = ("trainer.max_steps=4", "trainer.save_every=2")
    assert main(["--config", str(toy_config), *words, "trackers=[jsonl]", "trainer.save_resume=false"]) == 0
    capsys.readouterr()
    assert call(toy_config, *words, "--dry_run") == 0
    line = "toy has checkpoints and no state to go on from, so the run starts anew, and the folder is kept"
    assert line in capsys.readouterr().out
    assert not (runs / "toy.without_state").exists()
    assert call(toy_config, *words) == 0
    assert line in capsys.readouterr().out
    assert (runs / "toy.without_state" / "checkpoints" / "steps_4").is_dir()
    assert (runs / "toy" / "resume" / "steps_4").is_dir()
    assert call(toy_config, *words, "trainer.max_steps=6") == 0
    assert "has checkpoints and no state" not in capsys.readouterr().out
