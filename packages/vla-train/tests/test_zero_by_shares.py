"""ZeRO-3 on two ranks over gloo, of which each keeps its share from the start: one process's numbers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from vla_train.testing import framework_tree
from vla_train.testing.ranks import run_ranks, zero

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'deepspeed'"),
]


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2)])
def test_no_more_than_a_share_and_a_parameter_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, width: int
) -> None:
    for key, value in zero(3).items():
        monkeypatch.setenv(key, value)
    program = Path(__file__).with_name("partition_program.py")
    ended = run_ranks([sys.executable, str(program), precision], folder=tmp_path, forked=True)
    assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.said[-3000:] for rank in ended)
    layer = 64 * 64
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["shapes"] == [[64, 64]] * 32 + [[3, 64], [3]]
        assert seen["parts"] == [layer // 2] * 32 + [96, 2]
        assert seen["tied"]
        assert all(seen["equal"])
        # A rank's half of 32 layers in fp32, and what making one of them whole and splitting it takes.
        assert 16 * 4 * layer <= seen["built"] <= 17 * 4 * layer
        assert seen["peak"] <= (16 + 4) * 4 * layer
        assert 16 * width * layer <= seen["kept"] <= 17 * width * layer


def test_two_ranks_train_as_one_process(toy_config: Path, two_ranks: Any) -> None:
    """From scratch, and from a checkpoint with adapters or in bf16."""
    from vla_train.cli import main

    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree("QwenOFT", "tiny").data["framework"] | {"horizon": 4}
    node["datasets"]["val_fraction"] = 0
    node["trainer"] |= {
        "max_steps": 2, "batch_size": 2, "log_every": 1, "val_every": 0, "eps": 1e-3, "device": "auto",
        "schedule": "constant", "warmup_steps": 0,
    }  # fmt: skip
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    words, runs = ["--config", str(toy_config)], toy_config.parent / "runs"
    start = f"trainer.pretrained_checkpoint={runs / 'scratch' / 'checkpoints' / 'steps_2'}"
    lora = 'trainer.lora={"modules": ["vlm.model.language_model"], "rank": 2}'
    kinds = {
        "scratch": [],
        "adapters": [start, lora],
        "low": [start, "trainer.precision=bf16"],
    }
    plan = {name: [*words, *more, f"run_id={name}"] for name, more in kinds.items()}
    two_ranks.launch(plan, env=dict.fromkeys(plan, zero(3)))
    for name, more in kinds.items():
        alone = [*words, *more, f"run_id={name}_alone", "trainer.batch_size=4", "trainer.device=cpu"]
        assert main(alone) == 0
        ours, theirs = (
            load_file(runs / run / "checkpoints/steps_2/model.safetensors") for run in (f"{name}_alone", name)
        )
        assert ours.keys() == theirs.keys()
        worst = max(float((ours[key].float() - value.float()).abs().max()) for key, value in theirs.items())
        assert worst < (2e-2 if name == "low" else 2e-6), (name, worst)
        lines = [(runs / run / "metrics.jsonl").read_text().splitlines() for run in (f"{name}_alone", name)]
        losses = [[json.loads(line)["loss"] for line in of] for of in lines]
        assert losses[1] == pytest.approx(losses[0], rel=2e-2 if name == "low" else 2e-5), name
        assert all(value.dtype == ours[key].dtype for key, value in theirs.items()), name
