"""Two real processes with two workers each: every sample once an epoch, and on with the very next one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.mark.slow
def test_two_ranks_with_two_workers_share_an_epoch_and_resume_within_it(
    toy_config: Path, two_ranks: Any
) -> None:
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
    two_ranks.launch(
        {
            "whole": [*common, "run_id=whole"],
            "begun": [*common, "run_id=parts", "trainer.max_steps=6"],
            "rest": [*common, "run_id=parts", "trainer.resume=true"],
        },
    )
    seen = {
        (name, rank): two_ranks.seen(name, rank)["samples"]
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
