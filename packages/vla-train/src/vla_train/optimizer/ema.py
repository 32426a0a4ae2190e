"""Exponential moving average of the trainable weights (Polyak averaging)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vla_train.parts import local


class EMA:
    """Average of the parameters that train.

    Args:
        live: the parameters to follow.
        decay: weight of the old average; early on it is lower, ``(1 + n) / (10 + n)``, so that the
            average is not dominated by the random start.
    """

    def __init__(self, live: Sequence[Tensor], decay: float) -> None:
        self.decay, self.count = decay, 0
        self.live = list(live)
        # In fp32 whatever the weights: a bf16 average would lose updates smaller than its rounding.
        self.average = [p.detach().float().clone() for p in self.live]

    @torch.no_grad()
    def update(self, fine: Tensor | None = None) -> None:
        """Move the average towards the live weights; where ``fine`` (bool, on the device) is False it stays.

        The update is counted all the same: whoever learns that it was none sets ``count`` back.
        """
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        live = [local(p.detach()).float() for p in self.live]
        average = [local(a) for a in self.average]
        if fine is not None:
            live = [torch.where(fine, p, a) for p, a in zip(live, average, strict=True)]
        torch._foreach_lerp_(average, live, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        backup = [p.detach().clone() for p in self.live]
        try:
            self._copy(self.average)
            yield
        finally:
            self._copy(backup)

    @torch.no_grad()
    def _copy(self, source: list[Tensor]) -> None:
        for p, s in zip(self.live, source, strict=True):
            p.copy_(s)

    def state_dict(self) -> dict[str, Any]:
        """For ``accelerate``'s checkpoints."""
        return {"count": self.count, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.count = state["count"]
        for own, saved in zip(self.average, state["average"], strict=True):
            own.copy_(saved)
