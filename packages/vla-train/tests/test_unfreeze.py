"""Modules that train from a step on: still until then, the same run when resumed, on two processes too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vla_train.cli import main


@pytest.fixture
def staged(toy_config: Path) -> Path:
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] |= {"transforms": [{"name": "normalize"}]}
    node["trainer"] |= {
        "max_steps": 6,
        "log_every": 1,
        "save_every": 1,
        "val_every": 0,
        "keep_checkpoints": 0,
    }
    node["trainer"] |= {
        "schedule": "constant",
        "warmup_steps": 0,
        "learning_rate": {"base": 0.01, "vlm": 0.002},
    }
    node["trainer"] |= {"unfreeze": {3: ["vlm\\.layers\\.0\\..*"], 5: "vlm\\.(?!layers\\.0\\.).*"}}
    node["datasets"]["val_fraction"] = 0
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    return toy_config


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"steps_{step}" / "model.safetensors")


def moved(run: Path, step: int) -> set[str]:
    before, after = weights(run, step - 1), weights(run, step)
    return {
        "head" if name.startswith("head.") else "first" if name.startswith("vlm.layers.0.") else "rest"
        for name in before
        if not torch.equal(before[name], after[name])
    }


def test_each_stage_trains_what_it_says(staged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(staged), "--dry_run"]) == 0
    assert "vlm: 0.002, from step 3 and 5 on" in capsys.readouterr().out
    assert main(["--config", str(staged)]) == 0
    run = staged.parent / "runs" / "toy"
    assert moved(run, 2) == {"head"}
    assert moved(run, 3) == moved(run, 4) == {"head", "first"}
    assert moved(run, 5) == moved(run, 6) == {"head", "first", "rest"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: (line["lr/vlm"], line["lr/base"]) for line in lines if "lr" in line}
    assert rates[2] == (0.0, 0.01)
    assert rates[3] == rates[6] == (0.002, 0.01)
    state = torch.load(run / "resume/steps_6/optimizer.bin", weights_only=False)["state"]
    assert {float(entry["step"]) for entry in state.values()} == {2, 4, 6}
    # As much trains as in a run without stages.
    info = json.loads((run / "run.json").read_text())["parameters"]
    assert info["trainable"] == info["total"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_before_at_and_after_a_stage_it_is_the_same_run(staged: Path, precision: str) -> None:
    common = ["--config", str(staged), f"trainer.precision={precision}", "trainer.ema_decay=0.5"]
    assert main([*common, "run_id=whole"]) == 0
    for stop in (1, 2, 5):
        assert main([*common, f"run_id=after{stop}", f"trainer.max_steps={stop}"]) == 0
        assert main([*common, f"run_id=after{stop}", "trainer.resume=true"]) == 0
        runs = staged.parent / "runs"
        ours = weights(runs / f"after{stop}", 6)
        assert all(torch.equal(value, ours[key]) for key, value in weights(runs / "whole", 6).items()), stop


@pytest.mark.slow
def test_two_ranks_change_stages_together(staged: Path, two_ranks: Any) -> None:
    words = ["--config", str(staged), "trainer.eps=1e-3"]
    half = [*words, "trainer.batch_size=2"]
    shares = [*half, "trainer.sharding=fsdp2"]
    two_ranks.launch(
        {
            "ranks": [*half, "run_id=ranks"],
            "cast": [*half, "run_id=cast", "trainer.precision=autocast"],
            "shares": [*shares, "run_id=shares"],
            "begun": [*shares, "run_id=parts", "trainer.max_steps=3"],
            "parts": [*shares, "run_id=parts", "trainer.resume=true"],
        }
    )
    assert main([*words, "run_id=whole"]) == 0
    runs = staged.parent / "runs"
    for name, bound in (("ranks", 2e-6), ("shares", 2e-6), ("cast", 2e-2)):
        for step in (2, 3, 5, 6):
            assert moved(runs / name, step) == moved(runs / "whole", step), (name, step)
        theirs, ours = weights(runs / "whole", 6), weights(runs / name, 6)
        assert max(float((theirs[key] - ours[key]).abs().max()) for key in ours) < bound, name
    through, parts = weights(runs / "shares", 6), weights(runs / "parts", 6)
    assert all(torch.equal(through[key], parts[key]) for key in parts)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{5: [hat]}", "trainer.unfreeze: the policy has no module 'hat'"),
        ("{1: [vlm]}", "'1' is no step after the first"),
        ("{soon: [vlm]}", "'soon' is no step"),
        ("{5: []}", "trainer.unfreeze.5 must name modules"),
        ("{5: [vlm, head]}", "nothing trains before step 5"),
        ("{5: [vlm], 7: [vlm.layers.0]}", "is named by the steps 5 and 7"),
    ],
)
def test_mistakes_are_one_line(
    toy_config: Path, capsys: pytest.CaptureFixture[str], value: str, message: str
) -> None:
    assert main(["--config", str(toy_config), f"trainer.unfreeze={value}"]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert "\n" not in err
    assert not (toy_config.parent / "runs").exists()


def test_what_is_frozen_for_good_cannot_wait(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trainer.unfreeze={5: [vlm.layers.0]}", "trainer.freeze_modules=[vlm]"]
    assert main(["--config", str(toy_config), *words]) == 2
    assert "all of 'vlm.layers.0' is frozen" in capsys.readouterr().err


def test_a_stage_after_the_last_step_is_said(staged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(staged), "trainer.max_steps=4", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "trainer.unfreeze.5 has no effect: the last step is 4" in said
    assert "trainer.unfreeze.3 has" not in said
