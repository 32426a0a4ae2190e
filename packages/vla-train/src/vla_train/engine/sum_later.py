"""A sum over ranks that the computing does not stand still for.

A sum that is used at once makes the device wait until the slowest rank is there too. One that is asked for
early and used late has long been answered by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed


class SumLater:
    """The sum of a tensor over all ranks, under way from now on. All ranks make it, and in the same order.

    Args:
        tensor: what this rank adds; it is not changed.
        world: number of ranks.
    """

    def __init__(self, tensor: Tensor, world: int) -> None:
        self._total = tensor if world == 1 else tensor.clone()
        self._work: Any = None if world == 1 else distributed.all_reduce(self._total, async_op=True)

    def wait(self) -> Tensor:
        """The sum; on a GPU it is the stream that waits, on a CPU the caller."""
        work, self._work = self._work, None
        if work is not None:
            work.wait()
        return self._total


class Flag:
    """Whether a number is above zero in the sum over ranks, which the host reads when it is there.

    On a GPU this has a stream of its own, for the computing stands still neither for other ranks nor
    for the copy.

    Args:
        device: of the engine.
        world: number of ranks.
    """

    def __init__(self, device: torch.device, world: int) -> None:
        self._device, self._world = device, world
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def ask(self, number: float) -> Callable[[], bool]:
        """All ranks ask, and nobody waits before the answer is called for."""
        if self._stream is None:
            total = SumLater(torch.full((), number, device=self._device), self._world)
            return lambda: bool(total.wait() > 0)
        with torch.cuda.stream(self._stream):
            # Made there: a copy from the host would wait.
            total = SumLater(torch.full((), number, device=self._device), self._world)
            host = torch.empty((), pin_memory=True)
            host.copy_(total.wait(), non_blocking=True)
            event = torch.cuda.Event()
            event.record()

        def read() -> bool:
            event.synchronize()
            return bool(host > 0)

        return read
