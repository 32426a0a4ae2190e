"""Ranks end as programs end, whatever the threads of their process groups have in hand."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.device_mesh import DeviceMesh
from vla_train.engine import leaving
from vla_train.testing.ranks import run_ranks, started, wait


@pytest.mark.slow
def test_ranks_end_with_tensors_in_the_hands_of_gloo(tmp_path: Path) -> None:
    """Without order about every second rank dies of SIGABRT; two pairs."""
    program = str(Path(__file__).with_name("leaving_program.py"))
    for _ in range(2):
        ended = run_ranks([sys.executable, program], folder=tmp_path, forked=True)
        assert [rank.code for rank in ended] == [0, 0], [rank.said[-2000:] for rank in ended]


@pytest.mark.slow
def test_an_exchange_that_nobody_joins_does_not_keep_a_rank(tmp_path: Path) -> None:
    """It waited for gloo's own limit of half an hour, or for the others to end."""
    program = str(Path(__file__).with_name("leaving_program.py"))
    with started([sys.executable, program, "alone"], 2, tmp_path, forked=True) as ranks:
        wait(ranks[1:], time.monotonic() + 60)
        assert ranks[0].process.poll() is None
        ranks[0].process.send_signal(signal.SIGKILL)
        assert ranks[1].ended().code == 2


@pytest.mark.slow
def test_what_else_a_program_does_at_its_end_is_not_cut_off(tmp_path: Path) -> None:
    """It may write for longer than its groups may take to end."""
    program = str(Path(__file__).with_name("leaving_program.py"))
    ended = run_ranks([sys.executable, program, "slow"], folder=tmp_path, forked=True)
    assert [rank.code for rank in ended] == [0, 0], [rank.said[-2000:] for rank in ended]


@pytest.mark.slow
def test_the_threads_of_groups_end_before_the_interpreter(toy_config: Path, two_ranks: Any) -> None:
    """Whatever refers to the groups: DDP's wrapper, FSDP2's meshes, the channel of asynchronous saves."""
    words = ["--config", str(toy_config), "trainer.max_steps=2", "trainer.batch_size=2"]
    runs = {"whole": ["trainer.async_save=true"], "shares": ["trainer.sharding=fsdp2"]}
    two_ranks.launch({name: [*words, *more, f"run_id={name}"] for name, more in runs.items()})
    for rank in (0, 1):
        left = json.loads((two_ranks.folder / f"threads-{rank}.json").read_text())
        assert not [name for name in left if name.startswith(("pt_gloo", "pt_tcpstore"))], left


def test_a_mesh_without_groups_of_its_own_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of torch before it kept them there are."""
    mesh = DeviceMesh.__new__(DeviceMesh)
    assert not hasattr(mesh, "_pg_registry")
    ended: list[bool] = []
    monkeypatch.setattr(leaving.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(leaving.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(leaving.distributed, "destroy_process_group", lambda: ended.append(True))
    leaving._leave()
    assert ended == [True]
