"""configs/accelerate/zero*.yaml through ``accelerate launch``, at world size 1 on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from vla_core.policy import VLAPolicy
from vla_train.cli import main

CONFIG = Path(__file__).parents[3] / "configs" / "accelerate" / "zero2.yaml"


def launch(stage: int) -> tuple[str, ...]:
    """How a user starts ZeRO of a stage."""
    return ("-m", "accelerate.commands.launch", "--config_file", str(CONFIG.with_name(f"zero{stage}.yaml")))


TINY = {
    "hidden_size": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "intermediate_size": 32,
    "vision_hidden": 32, "vision_depth": 1, "vision_heads": 2, "vision_intermediate": 32,
}  # fmt: skip
# What `-m vla_train` runs, with the toy source known there too; run by run where there are several.
SCRIPT = """
import importlib.util, json, sys
from vla_core.registry import override
spec = importlib.util.spec_from_file_location("toy", {conftest!r})
toy = sys.modules["toy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
override("vla.sources", "toy", toy.ToySource)
from vla_train.cli import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0
"""
# The shared-memory collective is for several processes on one CPU; compiling it would take minutes.
NO_COMPILER = """
import deepspeed.ops
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
"""


@pytest.fixture
def config(toy_config: Path) -> Path:
    """A real backbone and head, with accumulation and clipping that bite."""
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] |= {
        "vlm": {"name": "qwen2_5_vl", "base_vlm": "tiny", "tiny": TINY},
        "head": {"name": "mlp_regression", "width": 32},
    }
    node["trainer"] |= {
        "max_steps": 4, "log_every": 1, "val_every": 0, "gradient_accumulation_steps": 2, "clip_norm": 0.1,
        "schedule": "constant",
    }  # fmt: skip
    node["datasets"]["val_fraction"] = 0
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    return toy_config


def script(config: Path, text: str) -> str:
    """Write the program beside the config."""
    path = config.parent / "program.py"
    path.write_text(text.format(conftest=str(Path(__file__).parent / "conftest.py")))
    return str(path)


def run(*command: str, runs: list[list[str]]) -> None:
    """Run one after the other in one program, without a GPU; its errors become ours."""
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *command, json.dumps(runs)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'deepspeed'")
@pytest.mark.skipif(not CONFIG.exists(), reason="needs the repository's configs/")
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_like_the_plain_loop_and_resumes(config: Path, stage: int) -> None:
    plain = ["--config", str(config)]
    bf16 = ["trainer.precision=bf16", "trainer.max_steps=2"]
    assert main([*plain, "run_id=plain"]) == 0
    assert main([*plain, *bf16, "run_id=low_plain"]) == 0
    words = [*plain, "trainer.device=auto"]
    begun = [*words, "run_id=zero", "trainer.max_steps=3"]
    resumed = [*words, "run_id=zero", "trainer.resume=true"]
    low = [*words, *bf16, "run_id=low"]
    # A program of its own resumes at one stage, not at both: a launch takes ten seconds of imports.
    launches = [[begun], [resumed, low]] if stage == 2 else [[begun, resumed, low]]
    runs, program = config.parent / "runs", script(config, NO_COMPILER + SCRIPT)
    for together in launches:
        run(*launch(stage), program, runs=together)
    # ZeRO's own shard of the optimizer proves that DeepSpeed did the steps.
    assert list((runs / "zero" / "resume" / "steps_4").rglob("zero_pp_rank_0*optim_states.pt"))
    expected, zero = metrics(runs / "plain"), metrics(runs / "zero")
    assert [m["step"] for m in zero] == [1, 2, 3, 4]
    for a, b in zip(expected, zero, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    one, other = (
        VLAPolicy.from_pretrained(runs / name / "checkpoints" / "steps_4") for name in ("plain", "zero")
    )
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=0)
    for a, b in zip(metrics(runs / "low"), metrics(runs / "low_plain"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)


@pytest.mark.skipif(not CONFIG.exists(), reason="needs the repository's configs/")
def test_accelerate_reads_every_config() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    files = {file.stem: load_config_from_file(str(file)) for file in CONFIG.parent.glob("*.yaml")}
    assert sorted(files) == ["ddp", "fsdp2", "zero1", "zero2", "zero3"]
    for stage in (1, 2, 3):
        assert files[f"zero{stage}"].deepspeed_config["zero_stage"] == stage
    assert files["fsdp2"].fsdp_config == {"fsdp_version": 2}
    assert {config.mixed_precision for config in files.values()} == {"no"}, "the trainer section decides"


def test_the_cpu_device_would_switch_deepspeed_off(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert main(["--config", str(config)]) == 2
    assert "trainer.device=auto" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plain_run_does_not_import_deepspeed(config: Path) -> None:
    """It takes seconds, and warns about the accelerator it finds."""
    program = script(config, SCRIPT + "assert 'deepspeed' not in sys.modules")
    run(program, runs=[["--config", str(config), "trainer.max_steps=1"]])
