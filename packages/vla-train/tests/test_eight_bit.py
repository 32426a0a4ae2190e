"""Moments in 8 bits: torchao's own AdamW, with masters, and a state that goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from vla_train.cli import main
from vla_train.optimizer import eight_bit
from vla_train.optimizer.eight_bit import BLOCK, quantize, widen
from vla_train.optimizer.masters import MasterAdamW

pytest.importorskip("torchao")

BETAS, EPS = (0.9, 0.95), 1e-8


def stepped(optimizer: torch.optim.Optimizer, weight: nn.Parameter, steps: int = 6) -> torch.Tensor:
    for number in range(steps):
        generator = torch.Generator().manual_seed(number)
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()
    return weight.detach().float()


def test_a_step_is_that_of_torchao() -> None:
    from torchao.optim import AdamW8bit

    start = torch.randn(64, 128, generator=torch.Generator().manual_seed(7))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    groups = [{"params": [ours], "lr": 1e-2, "weight_decay": 0.1}]
    mine = stepped(MasterAdamW(groups, BETAS, EPS, torch.uint8), ours)
    with torch.compiler.set_stance("force_eager"):
        reference = AdamW8bit([theirs], lr=1e-2, betas=BETAS, eps=EPS, weight_decay=0.1)
        torch.testing.assert_close(mine, stepped(reference, theirs), rtol=0, atol=2e-5)
    assert (mine - start).abs().max() > 0.02


def test_masters_take_steps_that_bf16_would_lose() -> None:
    start = torch.linspace(1, 2, 8192).reshape(64, 128).bfloat16()
    weight, wide = nn.Parameter(start.clone()), nn.Parameter(start.float())
    for p in (weight, wide):
        groups = [{"params": [p], "lr": 1e-4, "weight_decay": 0.0}]
        optimizer = MasterAdamW(groups, BETAS, EPS, torch.uint8)
        for _ in range(60):
            p.grad = torch.ones_like(p)
            optimizer.step()
        assert optimizer.state[p]["exp_avg"].dtype == torch.uint8
    # Each step is far below the rounding of bf16 at 1, and sixty of them are not.
    assert torch.equal(weight.detach(), wide.detach().bfloat16())
    assert (start.float() - weight.detach().float()).min() > 0.003


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_kept_is_near_what_was_given(signed: bool) -> None:
    moment = torch.randn(4, 1024, generator=torch.Generator().manual_seed(1))
    moment = moment if signed else moment.square()
    codes, scale = quantize(moment, signed)
    assert (codes.dtype, codes.shape, scale.shape) == (torch.uint8, moment.shape, (4 * 1024 // BLOCK,))
    largest = moment.reshape(-1, BLOCK).abs().amax(1)
    torch.testing.assert_close(scale, largest)
    error = (widen(codes, scale, signed) - moment).abs().reshape(-1, BLOCK).amax(1)
    assert (error <= 0.01 * largest).all()
    assert widen(*quantize(torch.zeros(4096), signed), signed).abs().max() == 0


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(toy_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The toy's layers are small.
    monkeypatch.setattr(eight_bit, "LEAST", 256)
    words = [
        "--config",
        str(toy_config),
        "trainer.moments=8bit",
        "trainer.precision=bf16",
        "trackers=[jsonl]",
    ]
    words += ["trainer.schedule=constant", "trainer.val_every=0"]
    for run_id, steps, resume in (("whole", 8, "false"), ("parts", 4, "false"), ("parts", 8, "true")):
        more = [f"run_id={run_id}", f"trainer.max_steps={steps}", f"trainer.resume={resume}"]
        assert main([*words, *more]) == 0
    runs = toy_config.parent / "runs"
    whole, parts = (load_file(runs / n / "checkpoints/steps_8/model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    state = torch.load(runs / "parts/resume/steps_8/optimizer.bin", weights_only=False)["state"]
    assert {entry["exp_avg"].dtype for entry in state.values()} == {torch.uint8, torch.float32}


def test_without_torchao_it_is_one_line(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim.quant_utils", None)
    assert main(["--config", str(toy_config), "trainer.moments=8bit"]) == 2
    assert "pip install 'vla-train[torchao]'" in capsys.readouterr().err
