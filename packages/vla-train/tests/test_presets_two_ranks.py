"""Every shipped preset on two ranks, under DDP, FSDP2 and ZeRO-3: three steps with the losses of one process.

And a validation, in which ranks have other samples than each other.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from vla_core.testing.matrix import variants
from vla_train import trainer
from vla_train.cli import main
from vla_train.noise import seed_streams
from vla_train.presets import list_presets
from vla_train.testing import framework_tree
from vla_train.testing.ranks import zero


def validated(run: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (found,) = [line for line in lines if "val/loss" in line]
    return found


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("loss", "grad_norm", "mfu")
    # A share of two chips instead of one, at a pace of its own: what remains is the FLOP of a sample.
    return [
        {key: line[key] / (line["samples_per_s"] if key == "mfu" else 1) for key in keys if key in line}
        for line in lines
        if "loss" in line
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", variants(sorted(list_presets()), ("QwenGR00T", "QwenFast", "PI0")))
def test_a_preset_trains_as_on_one_process(
    toy_config: Path, two_ranks: Any, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree(preset, "tiny").data["framework"] | {"horizon": 4}
    node["datasets"]["val_fraction"] = 0.4
    node["trainer"] |= {
        "val_samples": 6,
        "max_steps": 3,
        "batch_size": 2,
        "log_every": 1,
        "val_every": 0,
        "eps": 1e-3,
    }
    node["trainer"] |= {"schedule": "constant", "warmup_steps": 0, "save_resume": False, "peak_tflops": 0.001}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    common = ["--config", str(toy_config)]
    two_ranks.launch(
        {
            "ddp": [*common, "run_id=ddp"],
            "fsdp2": [*common, "run_id=fsdp2", "trainer.sharding=fsdp2"],
        }
    )
    names = ["ddp", "fsdp2"]
    if importlib.util.find_spec("deepspeed") is not None:
        names.append("zero3")
        words = [*common, "run_id=zero3", "trainer.device=auto", "trainer.bucket_mb=1"]
        two_ranks.launch({"zero3": words}, env={"zero3": zero(3)})
    # One process takes the two batches one after the other, with the random numbers of their ranks.
    monkeypatch.setattr(
        trainer, "seed_streams", lambda seed, _, step, micro: seed_streams(seed, micro, step, 0)
    )
    assert main([*common, "run_id=one", "trainer.gradient_accumulation_steps=2"]) == 0
    one = losses(toy_config.parent / "runs" / "one")
    assert len(one) == 3
    expected = validated(toy_config.parent / "runs" / "ddp")
    for name in names:
        found = validated(toy_config.parent / "runs" / name)
        assert found.keys() == expected.keys()
        assert found["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-3), name
        other = losses(toy_config.parent / "runs" / name)
        assert len(other) == 3
        for theirs, ours in zip(one, other, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-6), name
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), name
            # DeepSpeed's layers gather before anything is counted.
            assert name == "zero3" or ours["mfu"] * 2 == pytest.approx(theirs["mfu"], rel=1e-6), name
