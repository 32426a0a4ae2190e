"""What a time contributes to a flow-matching head: one for all steps of a chunk, or two.

Shape legend: B rows, R repeats, T action steps, L own tokens (the last T are the actions), W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class TimeCondition:
    """What a time contributes; independent of the observation, so a fixed grid needs it only once.

    Args:
        actions: what the action encoder needs of it ``[..., W]``.
        modulations: AdaLN scale and shift ``[..., 2W]`` of each block and of the final norm.
        frozen: bool ``[B, R, T]`` (or broadcastable), steps that are at the time of ``clean`` instead.
        clean: their condition.
    """

    actions: Tensor
    modulations: tuple[Tensor, ...]
    frozen: Tensor | None = None
    clean: TimeCondition | None = None

    def at(self, index: int) -> TimeCondition:
        """The entry ``index`` of a grid, shaped ``[1, 1, ...]`` to broadcast over rows and repeats."""
        pick = slice(index, index + 1)
        return TimeCondition(self.actions[None, pick], tuple(m[None, pick] for m in self.modulations))

    def freeze(self, frozen: Tensor, clean: TimeCondition) -> TimeCondition:
        """The same, with the steps ``frozen`` at the time of ``clean``."""
        return replace(self, frozen=frozen, clean=clean)

    def of_actions(self) -> Tensor:
        """For the action encoder: ``[..., W]``, or ``[..., T, W]`` with frozen steps."""
        if self.frozen is None or self.clean is None:
            return self.actions
        return _choose(self.frozen, self.clean.actions, self.actions)

    def of_block(self, index: int, n_tokens: int) -> Tensor:
        """Modulation ``index`` of own tokens: ``[..., 2W]``, or ``[..., L, 2W]`` with frozen steps.

        Chosen block by block: all at once would take K times the memory.
        """
        if self.frozen is None or self.clean is None:
            return self.modulations[index]
        frozen = F.pad(self.frozen, (n_tokens - self.frozen.shape[-1], 0))
        return _choose(frozen, self.clean.modulations[index], self.modulations[index])


Plan: TypeAlias = tuple[TimeCondition, ...]
"""Conditions of each Euler step."""


class KeptPlans(nn.Module):
    """Plans by their number of steps, each made once from when weights stay (:mod:`vla_core.packing`)."""

    MOST = 256
    """Steps in all: a client may ask for any number of them, and each takes 0.3 MB of QwenPI's head."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, Plan] | None = None

    def pack(self) -> None:
        """From now on: the weights change no more."""
        self._kept = {}

    def forget(self) -> None:
        """What was kept, if anything was: plans are made anew, and kept again."""
        if self._kept is not None:
            self._kept = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeptPlans:
        self.forget()  # made by weights that move to another place or number type now
        return super()._apply(fn, recurse)

    def get(self, steps: int, make: Callable[[], Plan]) -> Plan:
        """The plan of ``steps``, or what ``make`` gives.

        Made anew where gradients are wanted; and not kept when it is made within a CUDA graph, for its
        numbers are there when that is replayed and not before.
        """
        if self._kept is None or torch.is_grad_enabled():
            return make()
        plan = self._kept.get(steps)
        if plan is None:
            plan = make()
            capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
            if sum(map(len, self._kept.values())) + len(plan) <= self.MOST and not capturing:
                self._kept[steps] = plan
        return plan


def _choose(frozen: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
    return torch.where(frozen[..., None], clean[..., None, :], noisy[..., None, :])
