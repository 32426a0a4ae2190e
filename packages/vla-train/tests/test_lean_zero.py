"""ZeRO-1 and 2 with less for the host to do: on two ranks over gloo DeepSpeed's own numbers, bit by bit."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
from vla_train.testing.ranks import run_ranks, zero

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'deepspeed'"),
]


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, *how: str) -> None:
    """DeepSpeed's own, then ours."""
    for key, value in zero(stage).items():
        monkeypatch.setenv(key, value)
    program = Path(__file__).with_name("lean_program.py")
    for lean in ("false", "true"):
        ended = run_ranks([sys.executable, str(program), lean, *how], folder=tmp_path, forked=True)
        assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.said[-3000:] for rank in ended)


@pytest.mark.parametrize("stage", [1, 2])
def test_it_trains_as_deepspeeds_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    """Losses, norms and weights; and a gradient that is not finite is told by its norm."""
    run(tmp_path, monkeypatch, stage)
    for rank in (0, 1):
        own, lean = (json.loads((tmp_path / f"{lean}-{rank}.json").read_text()) for lean in ("false", "true"))
        assert len(own["fp32 "]["norms"]) == 4
        assert own["fp32 broken"]["norms"][2] == math.inf
        assert own == lean


def test_streams_wait_for_each_other_and_the_host_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, monkeypatch, 2, "streams")
    own, lean = ((tmp_path / f"{lean}-0.txt").read_text() for lean in ("false", "true"))
    assert "the host waits" in own
    assert "the host waits" not in lean
    assert json.loads((tmp_path / "true-0.json").read_text()) == json.loads(
        (tmp_path / "false-0.json").read_text()
    )
    # The large gradient comes last: kept until it is exchanged, with all before it; then it may be read, and
    # the next exchange begins after that.
    last = [
        "exchange keeps 720",
        "exchange waits for main",
        "main waits for exchange",
        "exchange reduces 720",
    ]
    after = ["main waits for exchange", "exchange waits for main"]
    assert lean.count("exchange reduces 720") == lean.count("\n".join([*last, *after])) > 8
    # No step reads or writes gradients beside an exchange.
    assert "main reduces 1\nexchange waits for main\nexchange waits for main\nmain waits" in lean
