"""What one rank does in the test of ZeRO-3 by shares: ``python partition_program.py PRECISION``.

It has DeepSpeed split a stack of layers, and writes down what lived meanwhile and what came of it, to
``RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from vla_train.config import TrainerConfig
from vla_train.engine import make_engine
from vla_train.testing.ledger import Ledger

LAYERS, WIDTH = 32, 64


def build() -> nn.Sequential:
    """Alike, and the last one tied to the first."""
    torch.manual_seed(3)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    model.append(nn.Linear(WIDTH, 3))
    model.append(nn.Linear(WIDTH, WIDTH, bias=False)).get_submodule("33").weight = model[0].weight
    return model


def main(precision: str) -> None:
    """As :class:`vla_train.trainer.Trainer` does it, on the CPU."""
    import deepspeed.ops

    # It would be compiled first, for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    from deepspeed.runtime.zero import GatheredParameters

    engine = make_engine(TrainerConfig(precision=precision, device="auto"))
    with Ledger() as ledger:
        with engine.sharing():
            model = build()
        built = ledger.live
        engine.split(model)
    whole = build()
    low = precision == "bf16"
    seen = {
        "peak": ledger.peak,
        "built": built,
        "kept": ledger.live,
        "shapes": [list(p.ds_shape) for p in model.parameters()],
        "parts": [p.ds_tensor.numel() for p in model.parameters()],
        "tied": model[33].weight is model[0].weight,
        "equal": [],
    }
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        with GatheredParameters([ours]):
            seen["equal"].append(torch.equal(ours, theirs.bfloat16() if low else theirs))
    Path(f"{os.environ['RANK']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
