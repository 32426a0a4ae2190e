"""ZeRO-3 goes on with another number of processes: the steps of one that never stopped."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vla_core.errors import UserError
from vla_train.cli import main
from vla_train.testing.ranks import readings, run_ranks, zero

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'deepspeed'"
)

SIZES = [[5, 12, 1], [7], [8, 3]]
"""Numbers of parameters, by sub-group: the first two are of one group of the optimizer."""
BELONGS = [0, 0, 1]


def parts(whole: torch.Tensor, world: int) -> list[torch.Tensor]:
    """Equal ones, the last padded."""
    size = -(-len(whole) // world)
    padded = torch.zeros(size * world)
    padded[: len(whole)] = whole
    return list(padded.split(size))


def written(world: int, groups: list[list[torch.Tensor]]) -> list[dict[str, Any]]:
    """What each of so many processes writes of ``groups``; moments are the masters' negatives."""
    shares: list[dict[str, Any]] = []
    for rank in range(world):
        flats = [torch.cat([parts(whole, world)[rank] for whole in group]) for group in groups]
        states = {i: {"step": torch.tensor(4.0), "exp_avg": -flat} for i, flat in enumerate(flats)}
        saved = {"state": states, "param_groups": [{"lr": 1.0, "params": [0]}, {"lr": 2.0, "params": [1]}]}
        shares.append({"fp32_flat_groups": flats, "optimizer_state_dict": saved, "zero_stage": 3})
    return shares


@pytest.mark.parametrize("wrote", [1, 2, 3, 5])
@pytest.mark.parametrize("reads", [1, 2, 4, 7])
@pytest.mark.parametrize("regrouped", [False, True])
def test_the_parts_of_all_are_the_whole(wrote: int, reads: int, regrouped: bool) -> None:
    from vla_train.engine.repartition_parameters import Cut, own_parts

    wholes = [[torch.rand(n) + 1 for n in group] for group in SIZES]
    # Sub-groups end where a number is reached, which is that of a part: elsewhere for other worlds.
    before = [[*wholes[0][:1]], [*wholes[0][1:], *wholes[1]], wholes[2]] if regrouped else wholes
    shares = written(wrote, before)
    cuts = [[Cut(n, -(-n // reads)) for n in group] for group in SIZES]
    made = [own_parts(shares, wrote, cuts, BELONGS, rank) for rank in range(reads)]
    for i, group in enumerate(wholes):
        begins = 0
        for whole, cut in zip(group, cuts[i], strict=True):
            own = slice(begins, begins + cut.part)
            together = torch.cat([one["fp32_flat_groups"][i][own] for one in made])
            moments = torch.cat([one["optimizer_state_dict"]["state"][i]["exp_avg"][own] for one in made])
            assert torch.equal(together[: len(whole)], whole)
            assert not together[len(whole) :].any()
            assert torch.equal(moments, -together)
            begins += cut.part
    for one in made:
        saved = one["optimizer_state_dict"]
        assert {float(state["step"]) for state in saved["state"].values()} == {4.0}
        assert saved["param_groups"] == [{"lr": 1.0, "params": [0, 1]}, {"lr": 2.0, "params": [2]}]
        assert one["zero_stage"] == 3


def test_frozen_parameters_too() -> None:
    from vla_train.engine.repartition_parameters import Cut, own_fragments

    whole = torch.rand(11)
    files = [{"kept": part, "other": part} for part in parts(whole, 3)]
    cut = Cut(11, 3)
    own = [own_fragments(files, {"kept": (cut, whole.bfloat16())}, rank)["kept"] for rank in range(4)]
    assert {part.dtype for part in own} == {torch.bfloat16}
    assert torch.equal(torch.cat(own)[:11], whole.bfloat16())


def test_other_cuts_are_refused() -> None:
    from vla_train.engine.repartition_parameters import Cut, own_parts

    shares = written(2, [[torch.rand(6)]])
    with pytest.raises(UserError, match=r"not equal shares.*go on with 2 processes"):
        own_parts(shares, 2, [[Cut(7, 7)]], [0], 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_then_one_then_three(toy_config: Path, two_ranks: Any) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["datasets"]["val_fraction"] = 0
    node["trainer"] |= {
        "max_steps": 6, "log_every": 1, "val_every": 0, "eps": 1e-3, "clip_norm": 0.1, "batch_size": 2,
        "gradient_accumulation_steps": 3, "schedule": "constant", "warmup_steps": 0,
        "freeze_modules": "vlm.vision",
    }  # fmt: skip
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    words = ["--config", str(toy_config)]
    assert main([*words, "run_id=one", "trainer.batch_size=4"]) == 0
    stretches = (
        (2, ["trainer.max_steps=2"]),
        (1, ["trainer.max_steps=4", "trainer.batch_size=4"]),
        (3, ["trainer.gradient_accumulation_steps=2"]),
    )
    run = two_ranks.folder / "runs" / "three"
    for world, more in stretches:
        again = ["trainer.resume=true"] if run.exists() else []
        own = [*words, "trainer.device=auto", *more, "run_id=three", *again]
        command = two_ranks.command({f"three_{world}": own}, env={f"three_{world}": zero(3)})
        ended = run_ranks(command, world=world, folder=two_ranks.folder, forked=True)
        assert [rank.code for rank in ended] == [0] * world, "\n".join(rank.said[-3000:] for rank in ended)
    expected = readings(two_ranks.folder / "runs" / "one")
    assert [step for step, *_ in expected] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(expected, readings(run), strict=True):
        assert b == pytest.approx(a, rel=2e-5)
    ours, theirs = (
        load_file(two_ranks.folder / "runs" / name / "checkpoints/steps_6/model.safetensors")
        for name in ("one", "three")
    )
    assert ours.keys() == theirs.keys()
    assert max(float((ours[key] - value).abs().max()) for key, value in theirs.items()) < 2e-6
    stretches_of = json.loads((run / "run.json").read_text())["stretches"]
    assert [(s["after_step"], s["processes"]) for s in stretches_of] == [(0, 2), (2, 1), (4, 3)]
