"""Saves beside the training where every rank holds a part: whole at every moment, and what fails is said."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vla_core.policy import VLAPolicy
from vla_train.checkpointing import resume
from vla_train.checkpointing.states import step_of
from vla_train.testing.ranks import started, wait, zero

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SHARES = ("trainer.sharding=fsdp2", "trainer.precision=bf16", "trainer.ema_decay=0.5")
BESIDE = ("trainer.async_save=true", "trainer.save_every=2")


@pytest.fixture
def words(toy_config: Path) -> list[str]:
    node = yaml.safe_load(toy_config.read_text())
    node["datasets"]["val_fraction"] = 0
    node["framework"]["head"] = {"name": "mlp_regression", "width": 33}  # two ranks have different shares
    node["trainer"] |= {"batch_size": 2, "max_steps": 6, "val_every": 0, "schedule": "constant"}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    return ["--config", str(toy_config)]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"steps_{step}" / "model.safetensors")


def test_shares_are_saved_beside_the_training(words: list[str], two_ranks: Any) -> None:
    words = [*words, *SHARES]
    two_ranks.launch(
        {
            "now": [*words, "run_id=now"],
            "begun": [*words, *BESIDE, "run_id=beside", "trainer.max_steps=4"],
            "beside": [*words, *BESIDE, "run_id=beside", "trainer.resume=true"],
        }
    )
    runs = two_ranks.folder / "runs"
    one, other = weights(runs / "now", 6), weights(runs / "beside", 6)
    assert one.keys() == other.keys()
    assert any(value.shape[0] % 2 for value in one.values())
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    names = [sorted(p.name for p in (runs / run / "resume/steps_6").iterdir()) for run in ("now", "beside")]
    assert names[0] == names[1]
    assert "__1_0.distcp" in names[0]


def test_a_rank_that_cannot_write_ends_all_with_one_line(words: list[str], two_ranks: Any) -> None:
    words = [*words, *SHARES, *BESIDE, "trainer.max_steps=400", "trainer.log_every=1000"]
    with started(
        two_ranks.command({"run": words}, full={"run": 1}), 2, two_ranks.folder, forked=True
    ) as ranks:
        # The first rank waits for others that may have more to say: longer than run_ranks waits.
        wait(ranks, time.monotonic() + 240)
        out = [rank.ended() for rank in ranks if rank.process.poll() is not None]
    assert [rank.code for rank in out] == [2, 2], [rank.said for rank in out]
    said = "".join(rank.said for rank in out)
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "cannot be written" in line]
    assert "steps_4: cannot be written" in line
    assert "on rank 1); the state before it is whole" in line
    run = two_ranks.folder / "runs" / "toy"
    assert [path.name for path in (run / "resume").iterdir()] == ["steps_2"]
    VLAPolicy.from_pretrained(run / "checkpoints" / "steps_2")


@pytest.mark.parametrize("kind", ["ddp", "ddp beside", "fsdp2", "fsdp2 beside", "zero2", "zero2 beside"])
def test_a_disk_that_runs_full_ends_both_with_one_line(
    words: list[str], two_ranks: Any, small_disk: Path, kind: str
) -> None:
    env: dict[str, str] = {}
    if kind.startswith("zero2"):
        pytest.importorskip("deepspeed")
        env = zero(2)
    own = {"ddp": (), "fsdp2": SHARES, "zero2": ("trainer.device=auto",)}[kind.split()[0]]
    words = [*words, *own, f"run_root_dir={small_disk}"]
    words += ["trainer.max_steps=400", "trainer.log_every=1000", "trainer.save_every=1"]
    words += ["trainer.keep_checkpoints=0", "trainer.keep_states=99"]
    words += [f"trainer.async_save={kind.endswith('beside')}".lower()]
    command = two_ranks.command({"run": words}, env={"run": env})
    with started(command, 2, two_ranks.folder, forked=True) as ranks:
        wait(ranks, time.monotonic() + 120)
        out = [rank.ended() for rank in ranks if rank.process.poll() is not None]
    said = "".join(rank.said for rank in out)
    assert [rank.code for rank in out] == [2, 2], said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if "cannot be written" in line]
    assert len(lines) == 1, lines
    assert "is whole" in lines[0]
    run = small_disk / "toy"
    newest = resume.newest(run)
    assert newest is not None
    assert not list((run / "resume").glob(".*"))
    VLAPolicy.from_pretrained(run / "checkpoints" / newest.name)


def test_killed_in_the_middle_of_a_save_the_newest_is_whole(words: list[str], two_ranks: Any) -> None:
    words = [*words, *SHARES, "trainer.async_save=true", "trainer.save_every=1"]
    endless = [*words, "trainer.max_steps=100000"]
    folder = two_ranks.folder / "runs" / "toy" / "resume"
    with started(two_ranks.command({"run": endless}), 2, two_ranks.folder, forked=True) as ranks:
        end = time.monotonic() + 150
        while step(folder) < 3 or not list(folder.glob(".steps_*.tmp")):
            assert all(rank.process.poll() is None for rank in ranks), [r.ended().said for r in ranks]
            assert time.monotonic() < end
            time.sleep(0.001)
        ranks[1].process.kill()
        # The first rank must not give a name to what has no part of the second.
        wait(ranks, time.monotonic() + 2)
        ranks[0].process.kill()
    last = step(folder) + 2
    two_ranks.launch({"rest": [*words, f"trainer.max_steps={last}", "trainer.resume=true"]})
    VLAPolicy.from_pretrained(folder.with_name("checkpoints") / f"steps_{last}")
    assert [path.name for path in folder.iterdir()] == [f"steps_{last}"]


def step(folder: Path) -> int:
    found = resume.newest(folder.parent)
    return 0 if found is None else step_of(found)
