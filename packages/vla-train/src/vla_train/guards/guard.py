"""Nothing that is not finite is ever written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vla_core.errors import UserError

from vla_train.engine import Engine
from vla_train.guards.bad_steps import BadSteps
from vla_train.parts import local


class Guard:
    """Watches loss and gradient in every step without making the host wait; reads when asked.

    Args:
        engine: for the agreement of all ranks.
        log: file to name in the error.
        bad_steps: leaves some out; None: none may be.
    """

    def __init__(self, engine: Engine, log: Path, bad_steps: BadSteps | None = None) -> None:
        self.engine, self.log, self.bad_steps = engine, log, bad_steps
        self._bad = torch.zeros((), device=engine.device)
        """First step that was not finite; 0: none."""

    def see(self, step: int, *values: Any) -> None:
        """Remember whether a step's loss and gradient norm (None: unknown) are finite."""
        if self.bad_steps is not None:
            return
        for value in values:
            if value is None:
                continue
            fine = torch.isfinite(torch.as_tensor(value, device=self.engine.device)).all()
            self._bad = torch.where((self._bad == 0) & ~fine, float(step), self._bad)

    def check(self) -> None:
        """Wait for the device and stop all ranks if one of them saw something else than numbers.

        Raises:
            UserError: with the step.
        """
        if self.bad_steps is not None:
            self.bad_steps.settle()
            return
        infinite = torch.where(self._bad == 0, 0.0, 1.0)
        if not float(self.engine.sum(infinite)):
            return
        first = min(step for step in self.engine.gather([int(self._bad)]) if step)
        raise UserError(
            f"the loss or its gradient is not finite at step {first}; nothing was written since. Lower "
            f"trainer.learning_rate or raise trainer.warmup_steps, and check {self.log}"
        )

    def check_tensors(self, tensors: Iterable[Tensor], what: str) -> None:
        """The same for weights or optimizer state, before they are written.

        Raises:
            UserError: naming ``what``.
        """
        bad = torch.zeros((), device=self.engine.device)
        held = (local(t.detach()) for t in tensors if t.is_floating_point())
        floats = [t for t in held if t.numel()]
        if floats:
            # The largest magnitude is finite only if all are; NaN wins every comparison of a maximum.
            largest = torch.stack([t.abs().amax().float().to(bad.device) for t in floats])
            bad = 1.0 - torch.isfinite(largest).all().float()
        if float(self.engine.sum(bad)):
            raise UserError(
                f"{what} are not finite; the checkpoint is not written. Lower trainer.learning_rate or raise "
                f"trainer.warmup_steps, and check {self.log}"
            )
