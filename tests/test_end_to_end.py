"""Whole runs as a user starts them: train, checkpoint, serve, roll out in the real simulator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from vla_core.errors import UserError
from vla_core.policy import VLAPolicy
from vla_train.cli import main

ROOT = Path(__file__).parents[1]


def write(config: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_train_serve_and_roll_out(
    quickstart: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("metaworld")
    quickstart["trainer"]["evaluation"] = {
        "tasks": ["faucet-open"], "episodes": 2, "env_options": {"max_steps": 6}, "workers": 1
    }  # fmt: skip
    assert main(["--config", write(quickstart, tmp_path)]) == 0
    out = capfd.readouterr().out
    run = tmp_path / "runs" / "tiny"
    assert "trains from scratch" in out
    assert "faucet-open" in out
    assert "95 % interval" in out
    assert "report.html" in out
    results = json.loads((run / "rollout" / "results.json").read_text())
    assert results["complete"]
    assert [e["seed"] for e in results["episodes"]] == [10000, 10001]
    assert all(e["steps"] == 6 for e in results["episodes"])
    assert list((run / "rollout" / "videos").iterdir())
    html = (run / "report.html").read_text()
    assert "faucet-open" in html
    assert "<svg" in html


@pytest.mark.parametrize("fusion", ["aligned_concat", pytest.param("mean_pool", marks=pytest.mark.slow)])
def test_a_geometric_branch_trains_and_serves(
    quickstart: dict[str, Any], tmp_path: Path, fusion: str
) -> None:
    overlay = str(ROOT / "configs" / "tiny_geometry.yaml")
    argv = ["--config", write(quickstart, tmp_path), overlay, f"framework.fusion.name={fusion}"]
    assert main(argv) == 0
    policy = VLAPolicy.from_pretrained(tmp_path / "runs" / "tiny" / "checkpoints" / "steps_3")
    assert policy.model.geometry is not None
    assert policy.config["use_geometric_branch"] is True
    assert policy.config["fusion"]["name"] == fusion


def test_the_regression_preset_trains(quickstart: dict[str, Any], tmp_path: Path) -> None:
    quickstart["framework"].update(name="QwenOFT", head={})
    assert main(["--config", write(quickstart, tmp_path)]) == 0
    policy = VLAPolicy.from_pretrained(tmp_path / "runs" / "tiny" / "checkpoints" / "steps_3")
    assert policy.framework == "QwenOFT"
    assert type(policy.model.head).__name__ == "MLPRegression"


@pytest.mark.slow
def test_flow_matching_resumes_exactly(quickstart: dict[str, Any], tmp_path: Path) -> None:
    """Noise, time, dropout and order all go on where they stopped."""
    quickstart["trainer"].update(max_steps=4, save_every=2, keep_checkpoints=0)
    config = write(quickstart, tmp_path)
    assert main(["--config", config, "run_id=whole"]) == 0
    whole = tmp_path / "runs" / "whole"
    # The crash: a process that is killed once step 2 is saved.
    code = (
        "import os, sys; from vla_train.trainer import Trainer; save = Trainer._save\n"
        "def crash(self, step):\n    save(self, step); os._exit(9)\n"
        "Trainer._save = crash; from vla_train.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--config", config, "run_id=parts"], check=False, capture_output=True
    )
    assert done.returncode == 9, done.stderr
    assert main(["--config", config, "run_id=parts", "trainer.resume=true"]) == 0
    parts = tmp_path / "runs" / "parts"
    a, b = (load_file(run / "checkpoints" / "steps_4" / "model.safetensors") for run in (whole, parts))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["framework.head.n_block=2"], "unknown key 'framework.head.n_block' (did you mean 'n_blocks'?)"),
        (["framework.vlm.tiny.n_layer=2"], "did you mean 'n_layers'?"),
        (["framework.transforms.0.heigth=9"], "did you mean 'height'?"),
        (["datasets.train.0.path=/no/such/place"], "/no/such/place"),
        (["datasets.train.0.cameras=[corner9]"], "corner9"),
        (["framework.vlm.max_text_tokens=many"], "framework.vlm.max_text_tokens"),
        (["framework.vlm.max_text_tokens=2"], "max_text_tokens"),
        ([f"framework.transforms.3.groups.0.3={'open ' * 30}it"], "makes a prompt of"),
        (["framework.vlm.base_vlm=/no/such/model"], "/no/such/model"),
    ],
)
def test_mistakes_with_real_parts_are_one_line(
    quickstart: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: list[str],
    expected: str,
) -> None:  # fmt: skip
    assert main(["--config", write(quickstart, tmp_path), *changes]) == 2
    err = [line for line in capfd.readouterr().err.splitlines() if line.startswith("vla-train: ")]
    assert len(err) == 1
    assert expected in err[0]


def test_a_checkpoint_of_another_robot_is_refused(quickstart: dict[str, Any], tmp_path: Path) -> None:
    """An action-dim mismatch between a checkpoint and the data names the tensor and both shapes."""
    assert main(["--config", write(quickstart, tmp_path)]) == 0
    checkpoint = tmp_path / "runs" / "tiny" / "checkpoints" / "steps_3"
    weights = load_file(checkpoint / "model.safetensors")
    key = next(k for k, v in weights.items() if k.startswith("head.") and 4 in v.shape)
    shape = tuple(7 if n == 4 else n for n in weights[key].shape)
    weights[key] = torch.from_numpy(np.zeros(shape, np.float32))
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(UserError, match=key) as error:
        VLAPolicy.from_pretrained(checkpoint)
    assert str(shape) in str(error.value)
