"""Which parameters a run can never train: those no loss term depends on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from vla_core.batch import Batch, ConversationBatch

from vla_train.engine import Engine


def unreached(model: nn.Module, batch: Batch | ConversationBatch, engine: Engine) -> list[str]:
    """Names of trainable parameters without a path to any loss term of ``batch``.

    One forward pass whose graph is walked: gradient checkpointing by recomputation and compiled blocks keep
    their parameters in it. Random numbers drawn here are given back, the model stays as it is.
    """
    model.to(engine.device)
    mode = model.training
    model.train()
    devices = [engine.device] if engine.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), engine.autocast():
        terms: dict[str, Tensor] = dict(model(batch.to(engine.device)))
    model.train(mode)
    reached = leaves(terms.values())
    return [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in reached]


def leaves(terms: Iterable[Tensor]) -> set[int]:
    """The id of each parameter that the graph of ``terms`` ends in."""
    todo = [term.grad_fn for term in terms if term.grad_fn is not None]
    seen, leaves = set(todo), set()
    while todo:
        node = todo.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                todo.append(parent)
    return leaves


def freeze_unreached(model: nn.Module, names: Iterable[str]) -> None:
    """Switch their gradients off."""
    wanted = set(names)
    for name, parameter in model.named_parameters():
        if name in wanted:
            parameter.requires_grad_(False)


def as_modules(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The names with whole modules in place of all their trainable parameters, for a short line."""
    left = set(names)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad} | left
    out = []
    for module, _ in model.named_modules():
        inside = {n for n in trainable if n.startswith(f"{module}.")} if module else set()
        if inside and inside <= left:
            out.append(f"{module}.*")
            left -= inside
    return sorted([*out, *left])
