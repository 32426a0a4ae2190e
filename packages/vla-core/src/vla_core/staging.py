"""Rows of a run side by side in memory that a GPU reads by itself, and their place on the GPU in one piece.

The thread that runs the model shares an interpreter with all others, and every operator is a chance to lose
it. So rows are laid where they leave from, not joined first and copied then, and go to the GPU as one copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from vla_core.rows import Prepared, join

ALIGNED = 256
"""Tensors begin at multiples of so many bytes, as those that CUDA allocates."""

_Place: TypeAlias = tuple[int, tuple[int, ...], torch.dtype]


class Staging:
    """Memory for the rows of one run at a time.

    Args:
        pinned: page-locked, so that a copy to a GPU needs no help of the CPU.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._views: dict[_Place, Tensor] = {}
        self._used = 0

    def join(self, parts: Sequence[Prepared]) -> Prepared:
        """The rows of ``parts`` as :meth:`Prepared.join` gives them, in this memory: until the next call."""
        self._used = 0
        rows = join(parts, self._cat)
        if self._used <= len(self._memory):
            return rows
        # More than ever before: what did not fit lies elsewhere.
        self._views.clear()
        self._memory = torch.empty(self._used, dtype=torch.uint8, device="cpu", pin_memory=self._pinned)
        return self.join(parts)

    @property
    def filled(self) -> Tensor:
        """The bytes of the rows joined last, uint8 ``[N]``."""
        return self._memory[: self._used]

    def onto(self, memory: Tensor) -> Callable[[Tensor], Tensor]:
        """From a tensor of the rows joined last to its place in ``memory``, a copy of :attr:`filled`."""
        start = self._memory.data_ptr()
        return lambda t: _view(memory, (t.data_ptr() - start, tuple(t.shape), t.dtype))

    def _cat(self, values: Sequence[Tensor], dim: int) -> Tensor:
        shape, dtype = list(values[0].shape), values[0].dtype
        shape[dim] = sum(value.shape[dim] for value in values)
        start = -(-self._used // ALIGNED) * ALIGNED
        self._used = start + math.prod(shape) * dtype.itemsize
        if self._used > len(self._memory):
            return torch.cat(list(values), dim)
        place = (start, tuple(shape), dtype)
        if place not in self._views:
            self._views[place] = _view(self._memory, place)
        return torch.cat(list(values), dim, out=self._views[place])


def _view(memory: Tensor, place: _Place) -> Tensor:
    start, shape, dtype = place
    return memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
