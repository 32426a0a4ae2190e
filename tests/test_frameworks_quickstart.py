"""Every preset, tiny, learns from the shipped demonstrations what holds on episodes it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from vla_core.config import Tree
from vla_train._smoke_sizes import framework_tree
from vla_train.composition import compose
from vla_train.presets import list_presets
from vla_train.trainer import Trainer

DATASET = Path(__file__).parents[1] / "examples" / "data" / "metaworld_faucet"
# Regression is quick; the samples of a flow take longer to beat a mean, most with one noise draw a step.
STEPS = {"QwenOFT": 80, "QwenAdapter": 80, "PI0": 500}
TRAINER: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate": {"base": 3e-3},
    "warmup_steps": 10,
    "ema_decay": 0.9,
    "val_every": 0,
    "val_samples": 48,
    "device": "cpu",
    "threads": 1,
}


# QwenFast, which must learn to spell before it can aim, has a run of its own in test_qwen_fast.py.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_presets() if name != "QwenFast"])
def test_preset_beats_the_mean_action(name: str, tmp_path: Path) -> None:
    tree = framework_tree(name, "tiny")
    data = {
        "framework": tree.data["framework"],
        "datasets": {
            "train": [{"name": "lerobot", "path": str(DATASET)}],
            "val_fraction": 0.1,
            "ram_cache": True,
        },
        "trainer": {**TRAINER, "max_steps": STEPS.get(name, 200)},
        "trackers": ["jsonl"],
    }
    composed = compose(Tree(data, tree.origins))
    (tmp_path / "run").mkdir()
    outcome = Trainer(composed, tmp_path / "run", Console(quiet=True)).train()
    assert outcome.metrics["val/action_mae"] < outcome.metrics["val/mean_action_mae"]
