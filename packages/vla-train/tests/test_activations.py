"""Activations are estimated without numbers: as many bytes as a real forward pass keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vla_core.model import VLAModel
from vla_train.cli import main
from vla_train.config import TrainerConfig
from vla_train.engine import make_engine
from vla_train.memory.activations import activations
from vla_train.memory.estimate import GIB, Estimate
from vla_train.memory.held import Activations, Block
from vla_train.memory.shadow import Ledger
from vla_train.optimizer.precision import set_precision
from vla_train.testing.sizes import framework_tree
from vla_train.testing.trace import build, training_batch

ROWS = 4


def kept(model: VLAModel, batch: Any, settings: TrainerConfig) -> int:
    """Bytes that autograd keeps in a forward pass with numbers, without parameters."""
    seen = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            sizes.append(storage.nbytes())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, make_engine(settings).autocast():
        terms = dict(model.train()(batch))  # keeps the graph, and so every key
    assert terms
    return sum(sizes)


def compared(name: str, precision: str, *words: str) -> tuple[int, Activations]:
    settings = TrainerConfig(device="cpu", precision=precision)  # type: ignore[arg-type]
    engine = make_engine(settings)
    policy = build(framework_tree(name, "tiny", words), "tiny")
    set_precision(policy.model, settings, engine)
    batch = training_batch(policy, ROWS)
    found = activations(policy.model, batch, settings, engine)
    return kept(policy.model, batch, settings), found


@pytest.mark.parametrize(
    "precision",
    ["bf16", pytest.param("fp32", marks=pytest.mark.slow), pytest.param("autocast", marks=pytest.mark.slow)],
)
def test_as_many_bytes_as_are_kept(precision: str) -> None:
    real, found = compared("QwenGR00T", precision)
    assert not found.why_not
    assert found.saved == pytest.approx(real, rel=0.05)
    assert found.peak >= found.saved


@pytest.mark.slow
@pytest.mark.parametrize("name", ["QwenOFT", "QwenPI", "QwenFast", "PI0", "MapAnythingLlava3DPI"])
def test_other_presets(name: str) -> None:
    real, found = compared(name, "bf16")
    assert not found.why_not
    assert found.saved == pytest.approx(real, rel=0.05)


@pytest.mark.slow
def test_checkpointing_keeps_less() -> None:
    _, all_of_it = compared("QwenGR00T", "fp32")
    real, found = compared("QwenGR00T", "fp32", "framework.vlm.gradient_checkpointing=true")
    assert not found.why_not
    assert found.saved == pytest.approx(real, rel=0.05)
    assert found.saved < all_of_it.saved
    assert found.peak < all_of_it.peak


def most(model: VLAModel, batch: Any, settings: TrainerConfig) -> int:
    """The most bytes that live at one moment of a step with numbers, without parameters."""
    known = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    ledger = Ledger(known, 1.0)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(ledger.finished)
    with ledger:
        with make_engine(settings).autocast():
            terms = dict(model.train()(batch))
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        terms.clear()
        loss.backward()
    return ledger.peak


# Few rows: the gradients are most, at the end. Many: activations, when the backward pass begins.
@pytest.mark.parametrize(
    ("precision", "rows"),
    [("autocast", 2), ("autocast", 16), pytest.param("bf16", 16, marks=pytest.mark.slow)],
)
def test_what_checkpointing_saves_is_what_it_is_said_to_save(precision: str, rows: int) -> None:
    settings = TrainerConfig(device="cpu", precision=precision, batch_size=rows)  # type: ignore[arg-type]
    deep = ("framework.vlm.tiny.n_layers=4", "framework.vlm.tiny.vision_depth=2")
    again = (*deep, "framework.vlm.gradient_checkpointing=true")
    found, real = [], []
    for words in (deep, again):
        policy = build(framework_tree("QwenGR00T", "tiny", words), "tiny")
        set_precision(policy.model, settings, make_engine(settings))
        batch = training_batch(policy, rows)
        found.append(activations(policy.model, batch, settings, make_engine(settings)))
        real.append(most(policy.model, batch, settings))
    assert [each.peak for each in found] == pytest.approx(real, rel=0.02)
    saved = real[0] - real[1]
    assert saved > 0.2 * real[0]
    # As the table at the start has it, and as an out-of-memory expects it of the run without.
    assert found[0].peak - found[1].peak == pytest.approx(saved, rel=0.05)
    assert found[0].peak - found[0].run_again().peak == pytest.approx(saved, rel=0.05)


def test_what_the_estimate_says() -> None:
    whole = {"weights": 2 * GIB, "gradients": 2 * GIB, "moments": 4 * GIB}

    def estimate(found: Activations | None) -> Estimate:
        return Estimate(whole, frozenset(), 1, 1, 0, found)

    def found(saved: int, peak: int) -> Activations:
        return Activations(Block(kept=saved * GIB), rest=(peak - saved) * GIB)

    # Most activations are there before the gradients are, and the optimizer steps without any.
    assert estimate(found(3, 5)).peak == 11 * GIB
    assert estimate(found(1, 1)).peak == 8 * GIB
    assert "which gradients replace; 11.00 at the peak" in estimate(found(3, 5)).line("one process")
    # ZeRO-3 has room for its gradients before there are any.
    early = replace(estimate(found(3, 5)), gathered=GIB, early=True)
    assert early.peak == 14 * GIB
    assert early.line("ZeRO-3").endswith("activations 3.00, gathered 1.00; 14.00 at the peak")
    assert estimate(Activations(why_not="RuntimeError: no")).peak is None
    assert "not estimated: RuntimeError: no" in estimate(Activations(why_not="RuntimeError: no")).line("one")


def test_a_model_that_reads_values_is_trained_all_the_same(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = VLAModel.forward

    def reads(self: VLAModel, batch: Any, *args: Any, **kwargs: Any) -> Any:
        assert batch.actions.sum().item() is not None
        return forward(self, batch, *args, **kwargs)

    monkeypatch.setattr(VLAModel, "forward", reads)
    assert main(["--config", str(toy_config), "trainer.max_steps=1", "trackers=[jsonl]"]) == 0
    assert "activations on top (not estimated: RuntimeError: " in capsys.readouterr().out
