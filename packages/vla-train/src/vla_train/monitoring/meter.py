"""Losses and times of the loop, gathered without making the host wait for the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

READING, COMPUTING, PAUSED = "reading data", "computing", "validating or saving"


class Meter:
    """Losses and times since the last :meth:`read`.

    Args:
        samples: samples of one :meth:`add`, over all processes.
        utilisation: MFU of one sample/s (:mod:`vla_train.monitoring.flops`); None: unknown.
    """

    def __init__(self, samples: int, utilisation: float | None = None) -> None:
        self.samples, self.utilisation = samples, utilisation
        self.grad_norm: Any = None
        self._began = time.monotonic()
        self._step = 0
        self.place = f"0 {READING}"
        """Where the loop is: step, and one of the words above."""
        self._reset()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._waited = self._paused = 0.0
        self._pending: list[dict[str, Tensor]] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Any] = {}
        self._count = 0

    def add(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """A micro-batch's loss and terms, weighted by its share of the step."""
        values = {"loss": loss, **{f"loss/{name}": term for name, term in terms.items()}}
        self._pending.append({name: value.detach().float() for name, value in values.items()})
        self._count += 1

    def end(self, norm: Any, fine: Tensor | None = None) -> None:
        """The step of what was added is done; where ``fine`` (bool, on the device) is False it has no loss.

        Args:
            norm: of its gradient; None: unknown.
            fine: alike on all processes; None: it is.
        """
        one = 1 if fine is None else fine.float()
        for name, value in (pair for values in self._pending for pair in values.items()):
            value = value if fine is None else torch.where(fine, value, 0.0)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            # Each on its own: a term that joins midway is the mean of its own steps.
            self._counts[name] = self._counts.get(name, 0) + one
        self._pending = []
        self.grad_norm = self.grad_norm if norm is None else norm

    def waiting(self, step: int) -> AbstractContextManager[None]:
        """Around the reading of a step's data."""
        self._step = step
        return _Timed(self, "_waited", READING)

    def paused(self) -> AbstractContextManager[None]:
        """Around what is no training."""
        return _Timed(self, "_paused", PAUSED)

    def read(self, mean: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Means since the last call; ``mean`` averages a tensor over processes."""
        names = list(self._sums)
        # Without a step that counts a mean is NaN, and is not told.
        means = torch.stack([self._sums[n] / self._counts[n] for n in names])
        values = (means if mean is None else mean(means)).tolist()
        now = time.monotonic()
        busy = max(1e-9, now - self._since - self._paused)
        out = {
            **{name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)},
            "samples_per_s": self._count * self.samples / busy,
            "data_wait": self._waited / busy,
            "elapsed_s": now - self._began,
        }
        if self.utilisation is not None:
            out["mfu"] = out["samples_per_s"] * self.utilisation
        if self.grad_norm is not None and math.isfinite(norm := float(self.grad_norm)):
            out["grad_norm"] = norm
        self._reset()
        return out


class _Timed(AbstractContextManager[None]):
    def __init__(self, meter: Meter, field: str, doing: str) -> None:
        self.meter, self.field, self.doing = meter, field, doing

    def __enter__(self) -> None:
        self.start = time.monotonic()
        self.meter.place = f"{self.meter._step} {self.doing}"

    def __exit__(self, *args: object) -> None:
        spent = time.monotonic() - self.start
        setattr(self.meter, self.field, getattr(self.meter, self.field) + spent)
        self.meter.place = f"{self.meter._step} {COMPUTING}"
