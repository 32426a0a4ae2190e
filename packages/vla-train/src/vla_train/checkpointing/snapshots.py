"""Copies of what is saved, which training does not change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla_train.parts import is_split


class Snapshots:
    """Copies of tensors in host memory, in the same memory each time: a save takes no more than the first.

    Whoever takes one must be done with the one before.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, thing: Any, name: str) -> Any:
        """``thing`` (tensors and plain values in mappings, lists and tuples), independent of what it was."""
        return self._take(thing, name, {})

    def _take(self, thing: Any, name: str, seen: dict[Any, Tensor]) -> Any:
        if is_split(thing):
            # The share of this rank; `from_local` would take it back to the device.
            share = self._copied(thing.to_local().detach(), name, seen)
            return type(thing)(share, thing._spec, requires_grad=False)
        if isinstance(thing, Tensor):
            return self._copied(thing.detach(), name, seen)
        if isinstance(thing, dict):
            return {key: self._take(value, f"{name}.{key}", seen) for key, value in thing.items()}
        if type(thing) in (list, tuple):
            return type(thing)(self._take(value, f"{name}.{i}", seen) for i, value in enumerate(thing))
        return thing

    def _copied(self, tensor: Tensor, name: str, seen: dict[Any, Tensor]) -> Tensor:
        # What shares its memory under two names goes on to do so, and is written once.
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else name
        if place not in seen:
            kept = self._kept.get(name)
            if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                kept = self._kept[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            seen[place] = kept.copy_(tensor)
        return seen[place]
