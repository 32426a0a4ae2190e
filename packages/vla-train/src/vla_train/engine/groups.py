"""Which layers FSDP2 gathers together: those of one place in a list's elements, up to a size.

The hooks around each group run in Python; with one group a layer, a step of a large model waits for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils._pytree import tree_leaves
from vla_core.shard import shard_units

MB = 1 << 20


def spread(
    model: nn.Module,
    *,
    gather_mb: int,
    reshard: bool,
    prefetch: int,
    complete: Callable[[list[nn.Module]], None],
) -> int:
    """Spread the parameters of ``model`` over all processes, in place; returns the number of groups.

    Args:
        model: on its device.
        gather_mb: megabytes of whole weights that a group of several layers has at most (0: each alone).
        reshard: free a group's weights between its forward and its backward pass.
        prefetch: groups of one list gathered ahead of the one that computes.
        complete: gives the parameters of the layers of a group their numbers, right before it is spread.
    """
    count = 1
    for layers in _alike(model):
        groups = list(_filled(layers, gather_mb * MB))
        for group in groups:
            complete(group)
            fully_shard(group if len(group) > 1 else group[0], reshard_after_forward=reshard)
            _gather_for_any(group)
        _gather_ahead(groups, prefetch)
        count += len(groups)
    complete([model])
    fully_shard(model)
    return count


def _alike(model: nn.Module) -> list[list[nn.Module]]:
    """Units whose names differ in numbers alone, of one class and alike in what trains; inner ones first."""
    known = {id(unit) for unit in shard_units(model)}
    found: dict[Any, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if id(module) in known:
            trains = frozenset(p.requires_grad for p in module.parameters())
            place = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
            found.setdefault((place, type(module), trains), []).append(module)
    # What lies inside has a longer name.
    return [found[key] for key in sorted(found, key=lambda key: -key[0].count("."))]


def _filled(layers: list[nn.Module], size: int) -> Iterator[list[nn.Module]]:
    """Cut where the next layer would not fit."""
    group: list[nn.Module] = []
    held = 0
    for layer in layers:
        own = sum(p.numel() * p.element_size() for p in layer.parameters())
        if group and held + own > size:
            yield group
            group, held = [], 0
        group.append(layer)
        held += own
    yield group


def _gather_for_any(group: list[nn.Module]) -> None:
    """Gather for the backward pass of any layer: torch does so for that of the last one alone.

    A loss need not reach the last one, where a head reads the features of the layers before it.
    """
    pre_backward: Any = fully_shard.state(group[0])._pre_backward  # type: ignore[attr-defined]

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(pre_backward)

    for layer in group[:-1]:
        layer.register_forward_hook(after)


def _gather_ahead(groups: list[list[nn.Module]], count: int) -> None:
    """Tell each group which come after it; backward passes go the list the other way."""
    firsts: list[FSDPModule] = [
        layer for group in groups for layer in group[:1] if isinstance(layer, FSDPModule)
    ]
    for i, layer in enumerate(firsts):
        if after := firsts[i + 1 : i + 1 + count]:
            layer.set_modules_to_forward_prefetch(after)
        if before := firsts[max(0, i - count) : i][::-1]:
            layer.set_modules_to_backward_prefetch(before)
