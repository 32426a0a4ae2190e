"""Tiny policies on the shipped demonstrations, for the tests that cross package borders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
DATASET = ROOT / "examples" / "data" / "metaworld_faucet"


def shrink(config: dict[str, Any], out: Path) -> dict[str, Any]:
    """The same config for a run of a few seconds."""
    config["datasets"]["train"][0].update(path=str(DATASET), cache="none")
    config["datasets"]["ram_cache"] = False
    config["trainer"].update(max_steps=3, batch_size=2, warmup_steps=1, val_every=0, val_samples=4)
    # One thread also in processes of its own: sums on two are split, and so rounded, differently.
    config["trainer"].update(device="cpu", threads=1, evaluation={"tasks": []}, log_every=1)
    config.update(run_root_dir=str(out / "runs"), run_id="tiny")
    return config


@pytest.fixture
def quickstart(tmp_path: Path) -> dict[str, Any]:
    """The shrunk quickstart config."""
    return shrink(yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text()), tmp_path)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on two threads, and bit-equality must not depend on the split."""
    torch.set_num_threads(1)
