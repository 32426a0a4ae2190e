"""How gradients and weights are exchanged: other ways, the same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from vla_core.errors import UserError
from vla_train.cli import main
from vla_train.compiling import compile_model
from vla_train.config import TrainerConfig
from vla_train.engine import Engine
from vla_train.engine.choose import check_met
from vla_train.engine.unused import unused
from vla_train.optimizer.precision import make_optimizer
from vla_train.testing.ranks import readings


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
        "layer_by_layer": ["trainer.sharding=fsdp2", "trainer.gather_mb=0"],
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


@pytest.mark.parametrize(
    ("word", "whose"),
    [
        ("trainer.reshard=false", "trainer.reshard: false is of FSDP2; set trainer.sharding: fsdp2"),
        ("trainer.gather_mb=9", "trainer.gather_mb: 9 is of FSDP2; set trainer.sharding: fsdp2"),
        ("trainer.prefetch=2", "trainer.prefetch: 2 is of FSDP2; set trainer.sharding: fsdp2"),
    ],
)
def test_what_only_fsdp2_does_is_refused_elsewhere(
    toy_config: Path, capsys: pytest.CaptureFixture[str], word: str, whose: str
) -> None:
    assert main(["--config", str(toy_config), word]) == 2
    assert whose in capsys.readouterr().err


def test_buckets_are_refused_under_fsdp2() -> None:
    sharded = Engine.__new__(Engine)
    sharded.name, sharded.world, sharded.uses = "FSDP2", 2, frozenset({"reshard", "prefetch"})
    with pytest.raises(UserError, match=r"bucket_mb: 50 is of DDP and ZeRO; leave it out \(this is FSDP2\)"):
        unused(TrainerConfig(bucket_mb=50, prefetch=3, hang_timeout_s=5), sharded, True)
    assert unused(TrainerConfig(prefetch=3, hang_timeout_s=5), sharded, True) == []
    (line,) = unused(TrainerConfig(peak_tflops=790), sharded, False)
    assert line.startswith("trainer.peak_tflops has no effect")


def test_what_several_processes_do_is_said_to_have_no_effect_in_one(
    toy_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trainer.bucket_mb=50", "trainer.hang_timeout_s=5", "--dry_run"]
    assert main(["--config", str(toy_config), *words]) == 0
    said = "trainer.bucket_mb and trainer.hang_timeout_s: of several processes; in one they have no effect"
    assert said in capsys.readouterr().out


def test_processes_that_do_not_meet_are_refused() -> None:
    check_met({"WORLD_SIZE": "2"}, 2)
    check_met({}, 1)
    with pytest.raises(UserError, match="2 processes were started, and this one runs with 1"):
        check_met({"WORLD_SIZE": "2"}, 1)


def test_the_best_of_no_validation_is_refused(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trainer.keep_best=val/action_mae", "datasets.val_fraction=0", "--dry_run"]
    assert main(["--config", str(toy_config), *words]) == 2
    assert "trainer.keep_best: 'val/action_mae' is of held-out episodes" in capsys.readouterr().err


def test_a_best_by_a_metric_that_is_none(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(toy_config), "trainer.keep_best=val/action_mea", "--dry_run"]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("trainer.keep_best: no metric 'val/action_mea' (did you mean 'val/action_mae'?)")
    )


def test_blocks_are_not_compiled_where_their_layers_gather() -> None:
    zero = Engine.__new__(Engine)
    zero.name, zero.shards, zero.gathers_inside = "DeepSpeed ZeRO-3", True, True
    with pytest.raises(UserError, match=r"trainer\.compile: DeepSpeed ZeRO-3 gathers and frees"):
        compile_model(nn.Linear(2, 2), TrainerConfig(compile="blocks"), zero)
    assert compile_model(nn.Linear(2, 2), TrainerConfig(), zero) is None


def test_an_average_of_weights_that_nobody_holds_is_refused() -> None:
    zero = Engine.__new__(Engine)
    zero.name, zero.has_masters, zero.shards = "DeepSpeed ZeRO-3", True, True
    with pytest.raises(UserError, match=r"trainer\.ema_decay: DeepSpeed ZeRO-3 holds no weights"):
        make_optimizer([], TrainerConfig(ema_decay=0.9), zero)
