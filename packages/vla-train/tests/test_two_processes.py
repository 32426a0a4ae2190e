"""Two real processes on gloo: streams, weights, balance, validation, names and saving."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

HERE = Path(__file__).parent
# What `-m vla_train` runs, with the toy source known there too; every rank writes down what it saw.
PROGRAM = """
import importlib.util, json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from vla_core.registry import override
from vla_core.testing import register_fakes
spec = importlib.util.spec_from_file_location("toy", {conftest!r})
toy = sys.modules["toy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
override("vla.sources", "toy", toy.ToySource)
fakes = register_fakes(); fakes.__enter__()
from vla_train import noise, trainer
from vla_train.parts import whole
seen = {{"draws": [], "names": []}}
step = trainer.Trainer._step
def total(model):
    return float(sum(whole(p.detach()).double().sum() for p in model.parameters()))
def record(self, number, batches, meter):
    if number == 1:
        seen["first"] = total(self.model)
        seen["unreached"] = self.unreached
    out = step(self, number, batches, meter)
    seen["draws"].append(torch.rand(3).tolist())
    seen["weights"] = total(self.model)
    return out
trainer.Trainer._step = record
from vla_train.cli import main
code = 0
for run in json.loads(Path(sys.argv[1]).read_text()):
    if run["argv"] is None:
        from accelerate.state import AcceleratorState
        continue
    seen["draws"] = []
    code = main(run["argv"])
    seen["code"] = code
    name = run["name"] + "-" + os.environ.get("RANK", "0") + ".json"
    (Path(sys.argv[1]).parent / name).write_text(json.dumps(seen))
    if code:
        break
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state()
sys.exit(code)
"""


def launch(folder: Path, runs: list[tuple[str, list[str]]], world: int = 2) -> list[str]:
    """Run the commands one after the other on ``world`` ranks; returns what each rank said at the end."""
    program, plan = folder / "program.py", folder / "plan.json"
    program.write_text(PROGRAM.format(conftest=str(HERE / "conftest.py")))
    plan.write_text(json.dumps([{"name": name, "argv": argv} for name, argv in runs]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(world):
        env = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        ranks.append(
            subprocess.Popen(
                [sys.executable, str(program), str(plan)],
                env=env,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        return [process.communicate(timeout=240)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()


def seen(folder: Path, name: str, rank: int) -> dict[str, Any]:
    """What a rank wrote down of a run."""
    return dict(json.loads((folder / f"{name}-{rank}.json").read_text()))


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"steps_{step}" / "model.safetensors")


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def uneven(toy_config: Path) -> Path:
    """Long chunks of short episodes, so that batches differ in valid entries."""
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] |= {"horizon": 16, "transforms": [{"name": "normalize"}]}
    node["datasets"] |= {"train": [{"name": "toy", "length": 24}]}
    node["trainer"] |= {"batch_size": 8, "max_steps": 6, "log_every": 1, "val_every": 3}
    node["trainer"] |= {"save_every": 3, "schedule": "constant", "eps": 1e-3}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    return toy_config


def test_two_ranks_are_one_run(uneven: Path) -> None:
    from vla_train.cli import main

    folder, runs = uneven.parent, uneven.parent / "runs"
    common = ["--config", str(uneven)]
    half = ["trainer.batch_size=4"]
    node = yaml.safe_load(uneven.read_text())
    del node["run_id"]
    node["run_root_dir"] = str(folder / "unnamed")
    unnamed = folder / "unnamed.yaml"
    unnamed.write_text(yaml.safe_dump(node))
    said = launch(
        folder,
        [
            ("ranks", [*common, *half, "run_id=ranks"]),
            ("begun", [*common, *half, "run_id=parts", "trainer.max_steps=3"]),
            ("parts", [*common, *half, "run_id=parts", "trainer.resume=true"]),
            ("unnamed", ["--config", str(unnamed), *half, "trainer.max_steps=2"]),
        ],
    )
    # Each rank its own stream; the weights start and stay the same.
    zero, one = (seen(folder, "ranks", rank) for rank in (0, 1))
    assert all("Traceback" not in text for text in said), said
    assert (zero["code"], one["code"]) == (0, 0)
    assert zero["first"] == one["first"]
    assert zero["weights"] == one["weights"]
    assert all(a != b for a, b in zip(zero["draws"], one["draws"], strict=True))
    assert len({tuple(draw) for draw in zero["draws"] + one["draws"]}) == 12
    # The first rank names the run.
    (run,) = (folder / "unnamed").iterdir()
    states = sorted(p.name for p in (run / "resume" / "steps_2").glob("random_states_*"))
    assert states == ["random_states_0.pkl", "random_states_1.pkl"]
    # Resumed: bit for bit, streams included.
    assert seen(folder, "parts", 1)["draws"] == one["draws"][3:]
    # Two ranks, two micro-batches, or all at once: the same step.
    for name, words in (("whole", []), ("micro", [*half, "trainer.gradient_accumulation_steps=2"])):
        assert main([*common, *words, f"run_id={name}"]) == 0
    whole = weights(runs / "whole", 6)
    for name in ("micro", "ranks"):
        other = weights(runs / name, 6)
        worst = max(float((whole[k] - other[k]).abs().max()) for k in whole)
        assert worst < 2e-6, (name, worst)
        for a, b in zip(metrics(runs / "whole"), metrics(runs / name), strict=True):
            for key in ("loss", "lr", "grad_norm"):
                if key in a:
                    assert b[key] == pytest.approx(a[key], rel=2e-5), (name, key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("PI0", ["trainer.lora={modules: [vlm.model.language_model], rank: 2}"]),
        ("PI0", []),
        ("PI05", []),
        ("QwenPI", ["framework.head.vl_layer_selection=first", "framework.head.n_blocks=1"]),
        ("QwenMapAnythingPI", ["framework.geometry={name: tiny, patch_size: 16, dim: 64, trainable: true}",
                               "framework.fusion={name: mean_pool}"]),
        ("QwenMapAnythingPI", ["framework.geometry={name: tiny, patch_size: 16, dim: 64, trainable: true}",
                               "framework.fusion={name: align_loss}"]),
    ],
)  # fmt: skip
def test_what_no_loss_reaches_is_frozen_and_ddp_runs(toy_config: Path, preset: str, words: list[str]) -> None:
    from vla_train.testing import framework_tree

    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree(preset, "tiny", [w for w in words if w.startswith("framework.")]).data[
        "framework"
    ] | {"horizon": 4}
    for part in ("geometry", "fusion"):
        if node["framework"].get(part):
            node["framework"][part] = {
                k: v for k, v in node["framework"][part].items() if k != "name" or isinstance(v, str)
            }
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    mine = [w for w in words if not w.startswith("framework.")]
    argv = ["--config", str(toy_config), "trainer.max_steps=3", "trainer.batch_size=2", *mine]
    said = launch(toy_config.parent, [("run", argv)])
    rank = seen(toy_config.parent, "run", 1)
    assert rank["code"] == 0, said
    assert rank["unreached"], said


@pytest.mark.slow
def test_shares_of_the_parameters_train_like_the_whole(uneven: Path) -> None:
    """FSDP2: the curve and checkpoint of one process, and a state that goes on bit by bit."""
    from vla_train.cli import main

    folder, runs = uneven.parent, uneven.parent / "runs"
    common = ["--config", str(uneven)]
    shares = ["trainer.sharding=fsdp2", "trainer.batch_size=4"]
    masters = ["trainer.precision=bf16", "trainer.ema_decay=0.9"]
    micro = ["trainer.batch_size=2", "trainer.gradient_accumulation_steps=2"]
    said = launch(
        folder,
        [
            ("shares", [*common, *shares, "run_id=shares"]),
            ("begun", [*common, *shares, *masters, *micro, "run_id=parts", "trainer.max_steps=3"]),
            ("parts", [*common, *shares, *masters, *micro, "run_id=parts", "trainer.resume=true"]),
            ("masters", [*common, *shares, *masters, *micro, "run_id=masters"]),
        ],
    )
    done = folder / "masters-1.json"
    assert done.is_file(), said
    assert seen(folder, "masters", 1)["code"] == 0, said
    assert main([*common, "run_id=whole"]) == 0
    assert main([*common, *masters, "run_id=rounded"]) == 0
    for one, other, bound in (("whole", "shares", 2e-6), ("rounded", "masters", 2e-2)):
        theirs, ours = weights(runs / one, 6), weights(runs / other, 6)
        assert theirs.keys() == ours.keys()
        assert max(float((theirs[k].float() - ours[k].float()).abs().max()) for k in ours) < bound, other
        for a, b in zip(metrics(runs / one), metrics(runs / other), strict=True):
            for key in ("loss", "grad_norm"):
                if key in a:
                    assert b[key] == pytest.approx(a[key], rel=10 * bound), (other, key)
    parts, through = weights(runs / "parts", 6), weights(runs / "masters", 6)
    assert all(torch.equal(parts[k], through[k]) for k in parts)
