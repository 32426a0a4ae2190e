"""How much memory a training step takes beside what is kept from step to step, without running it.

Forward and backward pass run on the meta device, where tensors have shapes and no memory, while the
storages that live are counted. Blocks that ``trainer.compile`` compiles keep less than they would otherwise:
what they keep is estimated from their matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from vla_core.errors import UserError

from vla_train.config import TrainerConfig
from vla_train.dataloading.conversations import AnyBatch
from vla_train.engine import Engine
from vla_train.memory.held import Activations
from vla_train.memory.shadow import Kept, Ledger, Stand, backward
from vla_train.reach import leaves

FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, UserError)
"""What a model may raise on tensors without numbers; an estimate ends no run."""


def activations(model: nn.Module, batch: AnyBatch, settings: TrainerConfig, engine: Engine) -> Activations:
    """Of a model whose precision is set and whose frozen parameters are known, before an engine splits it.

    Args:
        model: on any device; it stays as it is.
        batch: one micro-batch.
        settings: precision, compilation, accumulation.
        engine: whose gradients and precision count.
    """
    mode = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            return _measured(model, batch, settings, engine)
    except FAILURES as error:
        return Activations(why_not=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:160])
    finally:
        model.train(mode)


def _measured(model: nn.Module, batch: AnyBatch, settings: TrainerConfig, engine: Engine) -> Activations:
    # DeepSpeed rounds the weights later than this.
    low = torch.bfloat16 if engine.has_masters and settings.precision == "bf16" else None
    state = _without_numbers(model, low)
    share = 1 / engine.world if "gradients" in engine.spreads else 1.0
    # Of several micro-batches all but the first find the gradients there.
    accumulates = settings.gradient_accumulation_steps > 1
    ledger = Ledger(state, 0.0 if accumulates else share)
    kept = Kept(ledger, state, model)
    stand = Stand(ledger, engine.device.type)
    step = _Step(model, engine, stand, kept)
    for parameter in state.values():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(kept.finished)
    try:
        with ledger, stand:
            functional_call(
                step, {f"model.{name}": value for name, value in state.items()}, (batch.to("meta"),)
            )
    finally:
        for remove in kept.removes:
            remove()
    eager = kept.outside.kept + sum(block.kept for block in kept.blocks)
    return Activations(
        kept.outside,
        tuple(kept.blocks),
        rest=ledger.peak - eager,
        bare=ledger.bare - eager,
        then=ledger.then,
        late=ledger.late,
        late_then=ledger.late_then,
        gradients=int(share * ledger.gradients),
        budget=settings.activation_budget if settings.compile == "blocks" else None,
        accumulates=accumulates,
        terms=step.terms,
        unreached=tuple(
            name
            for name, _ in model.named_parameters()
            if state[name].requires_grad and id(state[name]) not in step.reached
        ),
    )


class _Step(nn.Module):
    """Both passes in one forward: parameters stand in for the model's only within it."""

    def __init__(self, model: nn.Module, engine: Engine, stand: Stand, kept: Kept) -> None:
        super().__init__()
        self.model = model
        self.engine, self.stand, self.kept = engine, stand, kept
        self.terms: tuple[str, ...] = ()
        self.reached: set[int] = set()

    def forward(self, batch: AnyBatch) -> None:
        """One micro-batch."""
        kept: Any = self.kept
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            with self.engine.autocast():
                terms: dict[str, Tensor] = dict(self.model(batch))
            self.stand.leave()
            self.terms, self.reached = tuple(terms), leaves(terms.values())
            loss = torch.stack([term.float() for term in terms.values()]).sum()
        terms.clear()
        backward(loss)


def _without_numbers(model: nn.Module, low: torch.dtype | None) -> Mapping[str, Tensor]:
    """Parameters and buffers as they are, tied ones included, without memory."""
    made: dict[int, Tensor] = {}
    named: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        dtype = low if low is not None and parameter.is_floating_point() else parameter.dtype
        empty = torch.empty(parameter.shape, dtype=dtype, device="meta")
        named[name] = made.setdefault(
            id(parameter), nn.Parameter(empty, requires_grad=parameter.requires_grad)
        )
    for name, buffer in model.named_buffers(remove_duplicate=False):
        named[name] = made.setdefault(
            id(buffer), torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
        )
    return named
