"""How gradients and weights are exchanged: other ways, the same steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from vla_core.errors import UserError
from vla_train.cli import main
from vla_train.engine.choose import check_met


def readings(run: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines]


@pytest.mark.slow
def test_every_way_of_exchange_takes_the_same_steps(toy_config: Path, two_ranks: Any) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["datasets"]["val_fraction"] = 0
    node["trainer"] |= {"max_steps": 4, "batch_size": 2, "log_every": 1, "val_every": 0, "eps": 1e-3}
    node["trainer"] |= {"schedule": "constant", "warmup_steps": 0, "save_resume": False}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    common = ["--config", str(toy_config)]
    micro = ["trainer.batch_size=1", "trainer.gradient_accumulation_steps=2"]
    ways = {
        "ddp": ["trainer.bucket_mb=1"],
        "ddp_micro": micro,
        "kept": ["trainer.sharding=fsdp2", "trainer.reshard=false", "trainer.prefetch=2"],
        "by_itself": ["trainer.sharding=fsdp2", "trainer.prefetch=0"],
    }
    two_ranks.launch({name: [*common, *words, f"run_id={name}"] for name, words in ways.items()})
    assert main([*common, "run_id=one", "trainer.batch_size=4"]) == 0
    runs = toy_config.parent / "runs"
    for name in ways:
        for one, other in zip(readings(runs / "one"), readings(runs / name), strict=True):
            assert other == pytest.approx(one, rel=2e-5), name
    # DDP's buckets take memory only while gradients arrive: none is left after a step.
    for name in ("ddp", "ddp_micro"):
        for rank in (0, 1):
            assert two_ranks.seen(name, rank)["buckets"] == [[True, 0]] * 4, name


def test_what_only_fsdp2_does_is_refused_elsewhere(
    toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(toy_config), "trainer.reshard=false"]) == 2
    assert "trainer.reshard: false is of FSDP2" in capsys.readouterr().err


def test_processes_that_do_not_meet_are_refused() -> None:
    check_met({"WORLD_SIZE": "2"}, 2)
    check_met({}, 1)
    with pytest.raises(UserError, match="2 processes were started, and this one runs with 1"):
        check_met({"WORLD_SIZE": "2"}, 1)
