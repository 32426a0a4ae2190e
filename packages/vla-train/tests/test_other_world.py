"""ZeRO-1, ZeRO-2 and FSDP2 go on with another number of processes: the steps of one that never stopped."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vla_train.cli import main
from vla_train.testing.ranks import readings, run_ranks, zero

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'deepspeed'"
)


def cut(flat: torch.Tensor, world: int) -> tuple[list[torch.Tensor], int]:
    """Equal parts, the last one without the padding that makes it so; the size of a part."""
    size = -(-len(flat) // world)
    return [flat[i * size : (i + 1) * size] for i in range(world)], size


@pytest.mark.parametrize("wrote", [1, 2, 3, 5])
@pytest.mark.parametrize("reads", [1, 2, 4, 7])
def test_the_parts_of_all_are_the_whole(wrote: int, reads: int) -> None:
    from vla_train.engine.repartition import own_share

    groups = [torch.arange(1.0, 1 + n) for n in (23, 40)]
    shares: list[dict[str, Any]] = []
    for rank in range(wrote):
        parts, moments = [], {}
        for i, group in enumerate(groups):
            pieces, size = cut(group, wrote)
            parts.append(pieces[rank])
            padded = torch.zeros(size)
            padded[: len(pieces[rank])] = -pieces[rank]
            moments[i] = {"step": torch.tensor(4.0), "exp_avg": padded}
        base = {"state": moments, "param_groups": [{"lr": 1.0}]}
        shares.append({"base_optimizer_state": base, "single_partition_of_fp32_groups": parts, "rank": rank})
    sizes = [cut(group, reads)[1] for group in groups]
    made = [own_share(shares, sizes, rank) for rank in range(reads)]
    for i, group in enumerate(groups):
        whole = torch.cat([one["single_partition_of_fp32_groups"][i] for one in made])
        assert torch.equal(whole[: len(group)], group)
        assert not whole[len(group) :].any()
        states = [one["base_optimizer_state"]["state"][i] for one in made]
        assert torch.equal(torch.cat([state["exp_avg"] for state in states])[: len(group)], -group)
        assert {float(state["step"]) for state in states} == {4.0}
    assert all(one["base_optimizer_state"]["param_groups"] == [{"lr": 1.0}] for one in made)


KINDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "fsdp2": (["trainer.sharding=fsdp2"], {}),
    "zero1": (["trainer.device=auto"], zero(1)),
    "zero2": (["trainer.device=auto"], zero(2)),
}
"""Engine -> its words, and what a launcher sets, which stays for the runs that follow."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_then_one_then_two(toy_config: Path, two_ranks: Any) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["datasets"]["val_fraction"] = 0
    node["trainer"] |= {
        "max_steps": 6, "log_every": 1, "val_every": 0, "eps": 1e-3, "clip_norm": 0.1, "batch_size": 2,
        "gradient_accumulation_steps": 2, "schedule": "constant", "warmup_steps": 0, "ema_decay": 0.5,
    }  # fmt: skip
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    words = ["--config", str(toy_config)]
    assert main([*words, "run_id=one", "trainer.batch_size=4"]) == 0
    stretches = ((2, ["trainer.max_steps=2"]), (1, ["trainer.max_steps=4", "trainer.batch_size=4"]), (2, []))
    for world, more in stretches:
        runs, env = {}, {}
        for kind, (own, around) in KINDS.items():
            name = f"{kind}_{world}"
            again = ["trainer.resume=true"] if (two_ranks.folder / "runs" / kind).exists() else []
            runs[name] = [*words, *own, f"run_id={kind}", *more, *again]
            env[name] = around
        command = two_ranks.command(runs, env=env)
        ended = run_ranks(command, world=world, folder=two_ranks.folder, forked=True)
        assert [rank.code for rank in ended] == [0] * world, "\n".join(rank.said[-3000:] for rank in ended)
    expected = readings(two_ranks.folder / "runs" / "one")
    assert [step for step, *_ in expected] == [1, 2, 3, 4, 5, 6]
    ours = load_file(two_ranks.folder / "runs" / "one" / "checkpoints" / "steps_6" / "model.safetensors")
    for kind in KINDS:
        run = two_ranks.folder / "runs" / kind
        for a, b in zip(expected, readings(run), strict=True):
            assert b == pytest.approx(a, rel=2e-5), kind
        theirs = load_file(run / "checkpoints" / "steps_6" / "model.safetensors")
        assert max(float((ours[key] - value).abs().max()) for key, value in theirs.items()) < 2e-6, kind
        stretches_of = json.loads((run / "run.json").read_text())["stretches"]
        assert [(s["after_step"], s["processes"]) for s in stretches_of] == [(0, 2), (2, 1), (4, 2)]
