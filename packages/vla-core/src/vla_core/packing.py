"""Weights in the layout that inference likes best: once, when a model is loaded to answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Packs(Protocol):
    """A module that has another layout of its weights for inference."""

    def pack(self) -> None:
        """Take it; what the module computes stays, the shapes of its parameters may not."""
        ...


@runtime_checkable
class Keeps(Protocol):
    """A module that, once packed, keeps what it made of weights alone."""

    def forget(self) -> None:
        """The weights are others now: it is made anew, and kept again."""
        ...


@runtime_checkable
class ReadsOnce(Protocol):
    """A module with weights that, once it is packed, are read for what is kept and not for each answer."""

    def read_once(self) -> Iterable[nn.Module]:
        """Their modules."""
        ...


def pack(model: nn.Module) -> int:
    """Let every module of ``model`` that can take its layout for inference; returns how many did.

    Such a model answers, and is neither trained nor saved any more.
    """
    parts = [part for part in model.modules() if isinstance(part, Packs)]
    for part in parts:
        part.pack()
    return len(parts)


def forget(model: nn.Module) -> None:
    """Let every module of a packed ``model`` make anew what it keeps: some of the weights have changed."""
    for part in model.modules():
        if isinstance(part, Keeps):
            part.forget()


def read_once(model: nn.Module) -> set[nn.Module]:
    """All modules whose weights a packed ``model`` does not read for each answer."""
    parts = [part for part in model.modules() if isinstance(part, ReadsOnce)]
    return {module for part in parts for given in part.read_once() for module in given.modules()}


def merged(*layers: nn.Linear) -> nn.Linear:
    """One linear layer with the outputs of several of the same input, one after the other; no gradients."""
    first = layers[0]
    if len({(layer.in_features, layer.bias is None) for layer in layers}) != 1:
        raise ValueError("layers of different inputs, or with and without bias")
    with torch.device("meta"):
        both = nn.Linear(
            first.in_features, sum(layer.out_features for layer in layers), first.bias is not None
        )
    both.train(first.training)
    both.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    if first.bias is not None:
        both.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return both
