"""A step that is not finite changes nothing on any rank; its samples are named, and too many end the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vla_train.cli import main
from vla_train.optimizer.masters import MasterAdamW

BAD = 8
"""Its frame in the data set: the third of episode 1."""


CUDA = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)


@pytest.fixture
def spoiled(toy_config: Path) -> Path:
    """18 samples of which one is no number; an epoch is nine steps of two samples."""
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] |= {"transforms": [{"name": "normalize"}]}
    node["datasets"] = {"train": [{"name": "counted", "infinite": [BAD]}], "val_fraction": 0}
    node["trainer"] |= {"batch_size": 2, "max_steps": 9, "log_every": 1, "save_every": 1, "val_every": 0}
    node["trainer"] |= {"keep_checkpoints": 0, "schedule": "constant", "warmup_steps": 0, "skip_bad_steps": 1}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    return toy_config


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"steps_{step}" / "model.safetensors")


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "samples_per_s" in line]


def named(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "bad_steps.jsonl").read_text().splitlines()]


def check(run: Path, steps: int, rank: int | None = None) -> int:
    """Nothing moved in the one step that was left out; returns which."""
    (bad,) = named(run)
    step = int(bad.pop("step"))
    assert rank is None or bad["rank"] == rank
    bad.pop("rank")
    assert bad == {"why": "loss", "data": "counted", "episode": 1, "frame": 2}
    for number in range(2, steps + 1):
        one, other = weights(run, number - 1), weights(run, number)
        same = [torch.equal(one[key], other[key]) for key in one]
        assert all(same) if number == step else not all(same), number
    logged = {line["step"]: line for line in metrics(run)}
    assert "loss" not in logged[step]
    assert {line["skipped_steps"] for n, line in logged.items() if n >= step} == {1}
    assert all("loss" in line for n, line in logged.items() if n != step)
    return step


@pytest.mark.parametrize(
    "words", [[], ["trainer.precision=bf16"], ["trainer.ema_decay=0.5"], ["trainer.clip_norm=0"]]
)
def test_a_step_is_left_out(spoiled: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(["--config", str(spoiled), *words]) == 0
    run = spoiled.parent / "runs" / "toy"
    step = check(run, 9)
    assert f"step {step} is left out, its loss of counted, episode 1, frame 2" in capsys.readouterr().out
    state = torch.load(run / "resume/steps_9/optimizer.bin", weights_only=False)["state"]
    assert {entry["step"] for entry in state.values()} == {8}
    assert all(entry["exp_avg"].isfinite().all() for entry in state.values())


@pytest.mark.slow
def test_one_more_ends_the_run_and_the_count_goes_on(
    spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In two epochs the sample comes twice; a resumed run knows of the first time."""
    assert main(["--config", str(spoiled)]) == 0
    assert main(["--config", str(spoiled), "trainer.max_steps=18", "trainer.resume=true"]) == 2
    err = capsys.readouterr().err.strip()
    assert "in 2 steps, more than trainer.skip_bad_steps=1 allows" in err
    assert "counted, episode 1, frame 2" in err
    assert "\n" not in err
    run = spoiled.parent / "runs" / "toy"
    step = named(run)[-1]["step"]
    assert step > 9
    assert not (run / "checkpoints" / f"steps_{step}").exists()
    assert (run / "checkpoints" / f"steps_{step - 1}").exists()


@pytest.mark.slow
def test_it_can_be_switched_on_and_off_between_two_runs(spoiled: Path) -> None:
    """The states of the two optimizers are read by each other."""
    common = ["--config", str(spoiled), "datasets.train=[{name: counted}]"]
    for name, limits in (("never", (0, 0)), ("later", (0, 2)), ("first", (2, 0))):
        for limit, more in zip(limits, (["trainer.max_steps=3"], ["trainer.resume=true"]), strict=True):
            assert main([*common, f"run_id={name}", f"trainer.skip_bad_steps={limit}", *more]) == 0
    runs = spoiled.parent / "runs"
    plain = weights(runs / "never", 9)
    for name in ("later", "first"):
        assert all(torch.equal(value, plain[key]) for key, value in weights(runs / name, 9).items()), name


@pytest.mark.slow
def test_two_ranks_agree(spoiled: Path, two_ranks: Any) -> None:
    """The sample is one rank's; both leave the step out, under DDP and where each holds its share."""
    words = ["--config", str(spoiled), "trainer.batch_size=1", "trainer.ema_decay=0.5"]
    shares = ["trainer.sharding=fsdp2", "run_id=shares"]
    two_ranks.launch({"whole": [*words, "run_id=whole"], "shares": [*words, *shares]})
    runs = spoiled.parent / "runs"
    steps = {name: check(runs / name, 9) for name in ("whole", "shares")}
    assert steps["whole"] == steps["shares"]
    for name in ("whole", "shares"):
        zero, one = (two_ranks.seen(name, rank) for rank in (0, 1))
        assert zero["weights"] == one["weights"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_the_optimizer_leaves_out_what_is_not_finite(dtype: torch.dtype, device: str) -> None:
    def trained(steps: list[float]) -> tuple[torch.Tensor, dict[str, Any]]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 48, device=device).reshape(8, 6).to(dtype))
        optimizer = MasterAdamW([{"params": [weight], "lr": 0.1, "weight_decay": 0.01}], (0.9, 0.95), 1e-8)
        for factor in steps:
            weight.grad = (factor * torch.linspace(2, -1, 48, device=device)).reshape(8, 6).to(dtype)
            norm = weight.grad.float().norm()
            optimizer.limit(norm, 1.0, True)
            optimizer.step()
            if not norm.isfinite():
                optimizer.uncount()
        return weight.detach(), optimizer.state[weight]

    weight, state = trained([1.0, float("nan"), 0.5, float("inf"), 2.0])
    other, expected = trained([1.0, 0.5, 2.0])
    assert torch.equal(weight, other)
    assert state["step"] == expected["step"] == 3
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(state[name], expected[name])
