"""ZeRO-1 and 2 with less for the host to do: on two ranks over gloo DeepSpeed's own numbers, bit by bit."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
from vla_train.testing.ranks import run_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'deepspeed'"),
]


@pytest.mark.parametrize("stage", [1, 2])
def test_it_trains_as_deepspeeds_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    """Losses, norms and weights; and a gradient that is not finite is told by its norm."""
    zero = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_MIXED_PRECISION": "no",
        "DS_ACCELERATOR": "cpu",
    }
    for key, value in zero.items():
        monkeypatch.setenv(key, value)
    program = Path(__file__).with_name("lean_program.py")
    for lean in ("false", "true"):
        ended = run_ranks([sys.executable, str(program), lean], folder=tmp_path, forked=True)
        assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.said[-3000:] for rank in ended)
    for rank in (0, 1):
        own, lean = (json.loads((tmp_path / f"{lean}-{rank}.json").read_text()) for lean in ("false", "true"))
        assert len(own["fp32 "]["norms"]) == 4
        assert own["fp32 broken"]["norms"][2] == math.inf
        assert own == lean
