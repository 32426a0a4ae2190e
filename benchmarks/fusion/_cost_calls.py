"""What ``cost.py`` times, and how: call by call, in turn with the policy without geometry."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from _cost_parts import Given, batch_of
from _device import milliseconds
from _models import noise_of
from vla_core.model import VLAModel
from vla_core.overlap import in_turn
from vla_core.policy import VLAPolicy


class Call:
    """``predict`` of one policy on its own batch of one; keeps the last answer."""

    def __init__(self, run: Any, name: str, overlap: bool = True, given: bool = False) -> None:
        policy = run.policies[name]
        self.batch = batch_of(policy, 1, run.words, run.device, targets=False)
        self.noise, self.overlap = noise_of(self.batch), overlap
        if given and policy.model.fusion is not None:
            features = run.encoder(self.batch.images, self.batch.cameras, policy.model.fusion.needs)
            given_features: Any = Given(features)
            model = VLAModel(policy.model.vlm, policy.model.head, given_features, policy.model.fusion)
            policy = VLAPolicy(model, policy.pipelines)
        self.policy = policy.eval()

    def __call__(self) -> None:
        with nullcontext() if self.overlap else in_turn():
            self.answer = self.policy.model.predict(self.batch, self.noise, 4)

    def moved(self) -> torch.Tensor:
        """How far from the noise the last answer is."""
        return self.answer - self.noise


def in_rounds(
    calls: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Milliseconds of each call, measured in turn: what drifts, drifts for all."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        milliseconds(call, 1, 2, device)
    for _ in range(repeats):
        for name, call in calls.items():
            spent[name] += milliseconds(call, 1, 0, device)
    return spent


def against(row: dict[str, Any], key: str, spent: dict[str, list[float]], base: str) -> None:
    """Medians of all, and of the differences to ``base``."""
    for name, times in spent.items():
        if name != base:
            row[f"{key}{name}_ms"] = statistics.median(times)
            pairs = zip(times, spent[base], strict=True)
            row[f"{key}{name}_added_ms"] = statistics.median(a - b for a, b in pairs)
    row[f"{key}{base}_ms"] = statistics.median(spent[base])


def training_step(policy: VLAPolicy, batch: Any, optimizers: list[torch.optim.Optimizer]) -> torch.Tensor:
    """Forward, backward, clipping and AdamW, without reading the loss."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss = torch.stack(list(policy.model(batch).values())).sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in policy.model.parameters() if p.requires_grad], 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()
