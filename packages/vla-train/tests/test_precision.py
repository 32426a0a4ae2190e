"""Every preset, tiny, with bf16 weights: near the fp32 loss, and a master steps each weight that trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vla_core.batch import Batch
from vla_train.config import TrainerConfig
from vla_train.engine import make_engine
from vla_train.optimizer.masters import MasterAdamW
from vla_train.optimizer.optim import parameter_groups
from vla_train.optimizer.precision import make_optimizer, masters_of, set_precision
from vla_train.presets import list_presets
from vla_train.testing import framework_tree
from vla_train.testing.trace import build, training_batch


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.stack([term.float() for term in model(batch).values()]).sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(list_presets()))
def test_a_preset_in_bf16_is_near_fp32_and_moves(name: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy: Any = build(framework_tree(name, "tiny", []), "tiny")
    model, settings = policy.model, TrainerConfig(device="cpu", precision="bf16")
    engine = make_engine(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            # Outputs start at zero, where every precision gives the same loss.
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch = training_batch(policy, 2)
    exact = float(loss_of(model, batch).detach())
    buffers = {key: value.dtype for key, value in model.named_buffers()}
    set_precision(model, settings, engine)
    assert {key: value.dtype for key, value in model.named_buffers()} == buffers
    optimizer = make_optimizer(parameter_groups(model, settings), settings, engine)
    assert isinstance(optimizer, MasterAdamW)
    assert masters_of(model, engine) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    loss = loss_of(model, batch)
    assert float(loss.detach()) == pytest.approx(exact, rel=0.05), name
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    optimizer.step()
    assert float(loss_of(model, batch).detach()) < float(loss.detach())


def test_runs_of_one_process_have_each_its_own_precision() -> None:
    for precision in ("fp32", "autocast", "fp32"):
        engine = make_engine(TrainerConfig(device="cpu", precision=precision))
        with engine.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if precision == "autocast" else torch.float32)
