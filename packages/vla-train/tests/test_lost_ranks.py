"""A rank that is killed, stopped or stuck ends all of them soon, with one line; fewer ranks go on."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from vla_train.guards.exits import INTERRUPTED, LOST
from vla_train.testing.ranks import Ended, Rank, started, wait

PROGRAM = Path(__file__).with_name("rank_program.py")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def config(toy_config: Path) -> Path:
    """Samples that are known by their state; a checkpoint every second step, and no end in sight."""
    node = yaml.safe_load(toy_config.read_text())
    node["framework"]["transforms"] = []
    node["datasets"] = {"train": [{"name": "counted", "lengths": [40, 40]}], "val_fraction": 0.0}
    node["trainer"] |= {
        "batch_size": 2,
        "max_steps": 100_000,
        "val_every": 0,
        "save_every": 2,
        "log_every": 1,
    }
    node["trainer"] |= {"warmup_steps": 0, "schedule": "constant"}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    return toy_config


@contextmanager
def running(config: Path, world: int, *words: str) -> Iterator[list[Rank]]:
    plan = config.parent / "plan.json"
    plan.write_text(json.dumps([{"name": "run", "argv": ["--config", str(config), *words]}]))
    with started([sys.executable, str(PROGRAM), str(plan)], world, config.parent, forked=True) as ranks:
        yield ranks


def until_step(config: Path, step: int, ranks: list[Rank]) -> None:
    metrics = config.parent / "runs" / "toy" / "metrics.jsonl"
    end = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < step:
        assert all(rank.process.poll() is None for rank in ranks), [rank.ended().said for rank in ranks]
        assert time.monotonic() < end
        time.sleep(0.05)


def ended(ranks: list[Rank], within: float) -> list[Ended]:
    begun = time.monotonic()
    wait(ranks, begun + within)
    assert all(rank.process.poll() is not None for rank in ranks), f"not all ended in {within} s"
    return [rank.ended() for rank in ranks]


def lines(ranks: list[Ended]) -> list[str]:
    said = "\n".join(rank.said for rank in ranks)
    assert "Traceback" not in said, said
    return [line for line in said.splitlines() if line.startswith("vla-train: ")]


def of_both(two_ranks: Any, name: str) -> list[list[int]]:
    """The samples of each step, of both ranks together."""
    ranks = [two_ranks.seen(name, rank)["samples"] for rank in (0, 1)]
    return [
        sorted(sample for batches in step for batch in batches for sample in batch)
        for step in zip(*ranks, strict=True)
    ]


def test_one_of_four_is_killed_and_two_go_on(config: Path, two_ranks: Any) -> None:
    with running(config, 4) as ranks:
        until_step(config, 5, ranks)
        ranks[2].process.send_signal(signal.SIGKILL)
        out = ended(ranks, within=40)
    assert [rank.code for rank in out] == [LOST, LOST, -signal.SIGKILL, LOST]
    (line,) = lines(out)
    assert "rank 2 (" in line
    assert "go on with run_id=toy trainer.resume=true" in line
    # What the four did not come to, the two do: each sample once an epoch.
    run = config.parent / "runs" / "toy"
    begun = max(int(path.name.removeprefix("steps_")) for path in (run / "resume").glob("steps_*"))
    steps = begun + 20  # two epochs
    words = [f"trainer.max_steps={steps}", "trainer.batch_size=4", "trainer.resume=true"]
    two_ranks.launch({"rest": ["--config", str(config), *words]})
    resumed = of_both(two_ranks, "rest")
    assert len(resumed) == 20
    two_ranks.launch({"whole": ["--config", str(config), *words[:2], "run_id=whole"]})
    whole = of_both(two_ranks, "whole")
    assert resumed == whole[begun:]
    for start in range(0, len(whole) - 9, 10):
        assert sorted(chain.from_iterable(whole[start : start + 10])) == list(range(80))


def test_one_that_is_stopped_is_named(config: Path) -> None:
    with running(config, 2, "trainer.hang_timeout_s=4") as ranks:
        until_step(config, 3, ranks)
        ranks[1].process.send_signal(signal.SIGSTOP)
        wait(ranks[:1], time.monotonic() + 30)
        first = ranks[0].process.poll()
        ranks[1].process.kill()
        out = ended(ranks, within=5)
    assert first == LOST
    (line,) = lines(out)
    assert "rank 1 (" in line
    assert "not heard of" in line


def test_one_that_waits_for_its_data_is_named(config: Path) -> None:
    node = yaml.safe_load(config.read_text())
    node["datasets"]["train"][0]["stuck"] = [33]
    config.write_text(yaml.safe_dump(node))
    with running(config, 2, "trainer.hang_timeout_s=3") as ranks:
        out = ended(ranks, within=120)
    assert {rank.code for rank in out} == {LOST}
    (line,) = lines(out)
    assert "stands still at step" in line
    assert ", reading data, for" in line


@pytest.mark.parametrize("interrupted", [[0], [1], [0, 1]], ids=str)
def test_an_interrupt_ends_all_soon(config: Path, interrupted: list[int]) -> None:
    """Where it came to one rank alone, the others waited for it until ``trainer.hang_timeout_s``."""
    with running(config, 2) as ranks:
        until_step(config, 3, ranks)
        for rank in interrupted:
            ranks[rank].process.send_signal(signal.SIGINT)
        out = ended(ranks, within=30)
    assert all(out[rank].code in (INTERRUPTED, LOST) for rank in interrupted)
    assert all(out[rank].code == LOST for rank in {0, 1} - set(interrupted))
    (line,) = lines(out)
    assert "interrupted; go on with run_id=toy trainer.resume=true" in line


def test_a_save_beside_the_training_is_finished_although_another_rank_has_left(config: Path) -> None:
    """What was interrupted with its peers was ended by one that was done with its own part."""
    out = config.parent / "whole"
    program = str(PROGRAM.with_name("busy_program.py"))
    with started([sys.executable, program, str(out)], 2, config.parent, forked=True) as ranks:
        both = ended(ranks, within=60)
    assert [rank.code for rank in both] == [INTERRUPTED] * 2, [rank.said[-2000:] for rank in both]
    assert out.read_text("utf-8") == "whole"
