"""Two real processes with two workers each: every sample once an epoch, and on with the very next one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

PROGRAM = """
import importlib.util, json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from vla_core.registry import override
from vla_core.testing import register_fakes
spec = importlib.util.spec_from_file_location("toys", {conftest!r})
toys = sys.modules["toys"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)
override("vla.sources", "counted", toys.CountedSource)
fakes = register_fakes(); fakes.__enter__()
from vla_train import trainer
seen = []
step = trainer.Trainer._step
def record(self, number, batches, meter):
    # Without transforms the state says which sample a row is.
    seen.append([[int(x) for x in batch.state[:, 0]] for batch in batches])
    return step(self, number, batches, meter)
trainer.Trainer._step = record
from accelerate.state import AcceleratorState
from vla_train.cli import main
for run in json.loads(Path(sys.argv[1]).read_text()):
    code = main(run["argv"])
    name = run["name"] + "-" + os.environ.get("RANK", "0") + ".json"
    Path(sys.argv[1]).with_name(name).write_text(json.dumps(seen))
    seen.clear()
    if code:
        sys.exit(code)
    AcceleratorState._reset_state()
"""


def launch(folder: Path, runs: dict[str, list[str]], world: int = 2) -> list[str]:
    """The runs one after the other on ``world`` ranks; what each rank said on standard error."""
    program, plan = folder / "program.py", folder / "plan.json"
    program.write_text(PROGRAM.format(conftest=str(Path(__file__).with_name("conftest.py"))))
    plan.write_text(json.dumps([{"name": name, "argv": argv} for name, argv in runs.items()]))
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
                env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[1] for process in ranks]
        assert [process.returncode for process in ranks] == [0] * world, said
        return said
    finally:
        for process in ranks:
            process.kill()


@pytest.mark.slow
def test_two_ranks_with_two_workers_share_an_epoch_and_resume_within_it(toy_config: Path) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["datasets"] = {
        "train": [
            {"name": "counted", "number": 0, "lengths": [9, 7], "robot": "a"},
            {"name": "counted", "number": 1, "lengths": [5, 11], "robot": "b", "cameras": 2, "weight": 2},
        ],
        "val_fraction": 0.0, "num_workers": 2,
    }  # fmt: skip
    node["framework"]["transforms"] = []
    node["trainer"] |= {"batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 8, "val_every": 0}
    node["trainer"] |= {"learning_rate": {"base": 1e-7}, "schedule": "constant"}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    folder, common = toy_config.parent, ["--config", str(toy_config)]
    # An epoch is 16 + 2 x 16 = 48 samples: four steps of 2 x 2 x 3. The break is in the middle of the second.
    launch(
        folder,
        {
            "whole": [*common, "run_id=whole"],
            "begun": [*common, "run_id=parts", "trainer.max_steps=6"],
            "rest": [*common, "run_id=parts", "trainer.resume=true"],
        },
    )
    seen = {
        (name, rank): json.loads((folder / f"{name}-{rank}.json").read_text())
        for name in ("whole", "begun", "rest")
        for rank in (0, 1)
    }
    for epoch in (0, 1):
        drawn = Counter(
            sample
            for rank in (0, 1)
            for step in seen["whole", rank][4 * epoch : 4 * epoch + 4]
            for batch in step
            for sample in batch
        )
        assert drawn == {**{i: 1 for i in range(16)}, **{1000 + i: 2 for i in range(16)}}
    for rank in (0, 1):
        assert seen["begun", rank] + seen["rest", rank] == seen["whole", rank]
    assert seen["whole", 0][:4] != seen["whole", 0][4:]
    lines = [json.loads(x) for x in (folder / "runs" / "whole" / "metrics.jsonl").read_text().splitlines()]
    # Counted over both ranks: two steps a line, and the epochs since the start.
    assert all(x["data/counted/samples"] + x["data/counted_2/samples"] == 24 for x in lines if "loss" in x)
    assert sum(x["data/counted/samples"] for x in lines if "loss" in x) == 32
    assert lines[-1]["data/counted_2/epochs"] == 4
