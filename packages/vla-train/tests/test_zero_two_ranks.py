"""DeepSpeed ZeRO on two ranks over gloo: the steps of one process, and saves beside the training."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vla_core.errors import ConfigError
from vla_train.cli import main
from vla_train.testing.ranks import readings, zero

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'deepspeed'"),
]


@pytest.fixture
def words(toy_config: Path) -> list[str]:
    """Accumulation, and clipping that bites."""
    node = yaml.safe_load(toy_config.read_text())
    node["datasets"]["val_fraction"] = 0
    node["trainer"] |= {
        "max_steps": 4, "batch_size": 2, "log_every": 1, "val_every": 0, "eps": 1e-3, "clip_norm": 0.1,
        "gradient_accumulation_steps": 2, "schedule": "constant", "warmup_steps": 0, "device": "auto",
    }  # fmt: skip
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    return ["--config", str(toy_config)]


def test_a_writer_that_is_late_is_refused() -> None:
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
    from vla_train.engine.deepspeed_writer import Kept, check_writer

    check_writer(TorchCheckpointEngine())
    with pytest.raises(ConfigError, match="and datastates_ckpt out of it"):
        check_writer(Kept(lambda thing, name: thing))


AVERAGE = "trainer.ema_decay=0.5"
ODD = 'framework.head={"name": "mlp_regression", "width": 33}'
"""Two ranks have different shares of it."""
BESIDE = ("trainer.async_save=true", "trainer.save_every=1")


def test_two_ranks_are_one_run_and_save_beside_it(words: list[str], two_ranks: Any) -> None:
    runs: dict[str, list[str]] = {}
    for stage in (1, 2, 3):
        # What ZeRO-3 holds between two steps cannot be averaged.
        mine = words if stage == 3 else [*words, AVERAGE]
        runs |= {
            f"now{stage}": [*mine, f"run_id=now{stage}"],
            f"begun{stage}": [*mine, *BESIDE, f"run_id=beside{stage}", "trainer.max_steps=2"],
            f"beside{stage}": [*mine, *BESIDE, f"run_id=beside{stage}", "trainer.resume=true"],
        }
    runs |= {"odd_now3": [*words, ODD, "run_id=odd_now3"]}
    runs |= {"odd_beside3": [*words, ODD, *BESIDE, "run_id=odd_beside3"]}
    two_ranks.launch(runs, env={name: zero(int(name[-1])) for name in runs})
    alone = [*words, "trainer.batch_size=4", "trainer.device=cpu"]
    assert main([*alone, "run_id=one"]) == 0
    assert main([*alone, "run_id=one_averaged", AVERAGE]) == 0
    folder = two_ranks.folder / "runs"
    for stage in (1, 2, 3):
        same_steps(folder / ("one" if stage == 3 else "one_averaged"), folder / f"now{stage}")
        same_files(folder / f"now{stage}", folder / f"beside{stage}", stage)
    same_weights(folder / "odd_now3", folder / "odd_beside3")
    counts = {
        name: json.loads((folder / name / "run.json").read_text())["parameters"]
        for name in ("one", "now1", "now2", "now3")
    }
    assert counts["one"]["total"] > 0
    assert all(count == counts["one"] for count in counts.values()), counts


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "steps_4" / "model.safetensors")


def same_steps(one: Path, two: Path) -> None:
    for a, b in zip(readings(one), readings(two), strict=True):
        assert b == pytest.approx(a, rel=2e-5), two.name
    ours, theirs = weights(one), weights(two)
    assert max(float((ours[key] - value).abs().max()) for key, value in theirs.items()) < 2e-6, two.name


def same_weights(now: Path, beside: Path) -> None:
    ours, theirs = weights(now), weights(beside)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def same_files(now: Path, beside: Path, stage: int) -> None:
    """The run that was resumed half-way and wrote beside its training."""
    same_weights(now, beside)
    states = [run / "resume" / "steps_4" for run in (now, beside)]
    files = [sorted(str(path.relative_to(state)) for path in state.rglob("*")) for state in states]
    assert files[0] == files[1]
    shares = [name for name in files[0] if name.endswith("optim_states.pt")]
    assert len(shares) == 2
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    for name in shares:
        one, other = (
            torch.load(state / name, weights_only=False)["optimizer_state_dict"][key] for state in states
        )
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
