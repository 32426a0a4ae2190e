"""AdamW with fp32 masters of bf16 weights: it is AdamW in fp32, and it goes on where it stopped."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from vla_core.errors import ConfigError, UserError
from vla_train.config import TrainerConfig
from vla_train.engine.base import KINDS
from vla_train.memory.estimate import GIB, Estimate
from vla_train.optimizer.masters import MasterAdamW, join, split, total_norm

BETAS, EPS = (0.9, 0.95), 1e-8
# On a GPU the kernel is compiled, here Triton interprets it.
INTERPRETED = """
import contextlib, torch
from vla_train.optimizer import adamw_kernel
from vla_train.engine.base import KINDS
from vla_train.optimizer.masters import MasterAdamW
torch.cuda.device_of = lambda tensor: contextlib.nullcontext()
torch.manual_seed(0)
for dtype in (torch.bfloat16, torch.float32):
    for moments in (torch.float32, torch.bfloat16):
        start = torch.randn(33, 71).to(dtype)
        ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
        both = [MasterAdamW([{"params": [p], "lr": 1e-3, "weight_decay": 0.1}], (0.9, 0.95), 1e-8, moments)
                for p in (ours, theirs)]
        both[0]._in_parts = both[0]._in_one_pass
        for number in range(5):
            gradient = torch.randn(33, 71).to(dtype)
            for optimizer, p in zip(both, (ours, theirs)):
                p.grad = gradient.clone()
                optimizer.scale = torch.tensor(0.5) if number % 2 else None
                if number == 2:
                    p.grad[0, 0] = float("inf")
                    optimizer.limit(torch.tensor(float("inf")), 1.0, True)
                    before = p.detach().clone()
                optimizer.step()
                if number == 2:
                    assert torch.equal(p, before)
                    optimizer.uncount()
        for key, value in both[0].state[ours].items():
            if isinstance(value, torch.Tensor) and key != "low":
                # The interpreter cuts off where a GPU rounds to bf16.
                atol = 1e-6 if moments == torch.float32 else 0.02
                torch.testing.assert_close(value, both[1].state[theirs][key], rtol=1e-4, atol=atol)
        bound = 1e-6 if moments == torch.float32 else 5e-4
        full = [o._masters([p])[0] for o, p in zip(both, (ours, theirs))]
        assert (full[0] - full[1]).abs().max() < bound, (dtype, moments)
"""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_a_master_is_its_two_halves_together(values: list[float]) -> None:
    master = torch.tensor(values, dtype=torch.float32)
    high, low = split(master)
    assert torch.equal(join(high, low).view(torch.int32), master.view(torch.int32))
    rounded = master.to(torch.bfloat16)
    apart = (high.float() - rounded.float()).abs()
    halfway = (rounded.float() - master).abs() * 2
    # Halves are rounded away from zero, not to even: nothing else differs.
    assert bool(((high == rounded) | (apart <= halfway) | high.isinf()).all())


def test_what_is_no_number_stays_none() -> None:
    high, low = split(
        torch.tensor([0x7FFFFFFF, 0x7F800000, -0x800000], dtype=torch.int32).view(torch.float32)
    )
    assert high.isnan().tolist() == [True, False, False]
    assert join(high, low)[1:].tolist() == [float("inf"), float("-inf")]


def optimizers(dtype: torch.dtype) -> tuple[Tensor, MasterAdamW, Tensor, torch.optim.AdamW]:
    torch.manual_seed(0)
    start = torch.randn(7, 5).to(dtype)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.float())
    group: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.1}
    return (
        ours,
        MasterAdamW([{"params": [ours], **group}], BETAS, EPS),
        theirs,
        torch.optim.AdamW([{"params": [theirs], **group}], betas=BETAS, eps=EPS),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_masters_take_the_steps_of_adamw_in_fp32(dtype: torch.dtype) -> None:
    ours, master, theirs, reference = optimizers(dtype)
    for number in range(20):
        gradient = torch.randn(7, 5).to(dtype)
        ours.grad, theirs.grad = gradient, gradient.float() * 0.25
        master.scale = torch.tensor(0.25)
        master.step()
        reference.step()
        (full,) = master._masters([ours])
        assert torch.equal(full, theirs), number
    assert torch.equal(ours.float(), split(theirs.detach())[0].float()) or dtype == torch.float32


def test_a_loaded_state_keeps_its_precision() -> None:
    ours, master, _, _ = optimizers(torch.bfloat16)
    other, again, _, _ = optimizers(torch.bfloat16)
    for number in range(6):
        if number == 3:
            with torch.no_grad():
                other.copy_(ours)
            again.load_state_dict(copy.deepcopy(master.state_dict()))
        gradient = torch.randn(7, 5).bfloat16()
        for p, optimizer in ((ours, master), (other, again))[: 2 if number >= 3 else 1]:
            p.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, other)
    for key, value in master.state[ours].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again.state[other][key])), key


def test_the_norm_is_that_of_all_gradients() -> None:
    parts = [torch.randn(9).bfloat16(), torch.randn(4, 4)]
    whole = torch.cat([p.float().flatten() for p in parts])
    assert float(total_norm(parts)) == pytest.approx(float(whole.norm()), rel=1e-6)
    assert float(total_norm([])) == 0


def test_moments_in_bf16_want_a_second_beta_that_moves_them() -> None:
    with pytest.raises(ConfigError, match=r"betas: \[0\.9, 0\.95\]"):
        TrainerConfig(moments="bf16", betas=(0.9, 0.999))
    with pytest.raises(ConfigError, match="compile: blocks"):
        TrainerConfig(activation_budget=0.5)


def test_a_run_that_does_not_fit_is_told_what_does() -> None:
    whole = dict(zip(KINDS, (8 * GIB, 8 * GIB, 8 * GIB, 32 * GIB, 0), strict=True))
    alone = Estimate(whole, frozenset(), 1, free=4 * GIB, wide=4)
    assert alone.total == 56 * GIB
    alone.check(57 * GIB)
    with pytest.raises(UserError, match=r"56\.0 GiB.*40\.0 GiB; .*moments=bf16 \(40\.0 GiB\).*on 2 GPUs"):
        alone.check(40 * GIB)
    zero2 = Estimate(whole, frozenset(KINDS) - {"weights"}, 4, free=4 * GIB, wide=0)
    assert zero2.total == 20 * GIB
    assert "weights 8.00, gradients 2.00, masters 2.00, moments 8.00; 20.00" in zero2.line("ZeRO-2")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_the_compiled_kernel_does_what_the_parts_do(dtype: torch.dtype, moments: torch.dtype) -> None:
    torch.manual_seed(0)
    start = torch.randn(1000, 333).to("cuda", dtype)
    pair = [nn.Parameter(start.clone()) for _ in range(2)]
    both = [
        MasterAdamW([{"params": [p], "lr": 1e-3, "weight_decay": 0.1}], BETAS, EPS, moments) for p in pair
    ]
    both[1]._in_one_pass = both[1]._in_parts  # type: ignore[method-assign]
    for number in range(5):
        gradient = torch.randn(1000, 333).to("cuda", dtype)
        for optimizer, p in zip(both, pair, strict=True):
            p.grad = gradient.clone()
            optimizer.scale = torch.tensor(0.5, device="cuda") if number % 2 else None
            optimizer.step()
    kernel, parts = (o._masters([p])[0] for o, p in zip(both, pair, strict=True))
    assert float((kernel - parts).abs().max()) < (1e-5 if moments == torch.float32 else 1e-3)


@pytest.mark.slow
def test_the_kernel_does_what_the_parts_do(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    program = tmp_path / "program.py"
    program.write_text(INTERPRETED)
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
