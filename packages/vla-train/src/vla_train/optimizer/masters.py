"""AdamW that steps fp32 masters of bf16 weights: small steps would vanish in the rounding of bf16.

The master is not kept beside its weight but completes it: a bf16 number is the upper half of an fp32 number,
so that 16 bits more a weight, the signed distance to the master, give the master back bit by bit. With its
gradient and fp32 moments a weight takes 2 + 2 + 2 + 8 = 14 bytes instead of 16. The weight is its master,
rounded to the nearest (halves away from zero). The rule is AdamW's (arXiv 1711.05101).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from vla_train.optimizer.eight_bit import MOMENTS
from vla_train.parts import local

CHUNK = 1 << 26
"""Weights that are stepped together where there is no kernel: their masters exist meanwhile."""
_NAN = 0x7FC00000


def join(high: Tensor, low: Tensor) -> Tensor:
    """The float32 master of a bfloat16 tensor and its int16 complement."""
    bits = (high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)
    return bits.view(torch.float32)


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of :func:`join`: (bfloat16, int16)."""
    # All bits of a NaN set would be carried into the sign.
    bits = torch.where(master.isnan(), _NAN, master.view(torch.int32))
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


class MasterAdamW(torch.optim.Optimizer):
    """AdamW for weights in bfloat16, float32, or both.

    Args:
        params: groups with ``lr`` and ``weight_decay``.
        betas, eps: as in AdamW.
        moments: type of both moments. In bfloat16 they save 4 bytes a weight; a change of less than 1/256 of
            a moment is then rounded away, which needs ``beta2`` well below 1. uint8: 8 bits
            (:mod:`vla_train.optimizer.eight_bit`), which save 6.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        moments: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.moments = moments
        self._stepped: list[Tensor] = []
        self.scale: Tensor | None = None
        """Factor of the next step's gradients, cheaper than to write them anew; NaN: it does nothing."""

    def _of(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            for moment in MOMENTS:
                moment.start(state, parameter, self.moments)
            if parameter.dtype == torch.bfloat16:
                state["low"] = torch.zeros_like(parameter, dtype=torch.int16)
        return state

    def limit(self, norm: Tensor, largest: float, leave_out: bool) -> None:
        """Bound the gradient, whose norm is ``norm``, in the next step.

        Args:
            norm: float32 scalar.
            largest: norm that is allowed (0: any).
            leave_out: where the norm is not finite, the step changes no weight and no moment. It is counted
                all the same: :meth:`uncount`.
        """
        scale = (largest / (norm + 1e-6)).clamp(max=1.0) if largest else torch.ones_like(norm)
        self.scale = torch.where(norm.isfinite(), scale, torch.nan) if leave_out else scale

    def uncount(self) -> None:
        """The last step was left out: the bias correction of the next one is that of its place."""
        for parameter in self._stepped:
            self.state[parameter]["step"] -= 1

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; ``closure`` is not supported (None)."""
        assert closure is None
        self._stepped = []
        for group in self.param_groups:
            options = {k: group[k] for k in ("lr", "weight_decay", "betas", "eps")}
            for chunk in _chunks(p for p in group["params"] if p.grad is not None):
                for parameter in chunk:
                    self._of(parameter)["step"] += 1
                self._stepped += chunk
                in_kernel = chunk[0].device.type == "cuda" and self.moments != torch.uint8
                step = self._in_one_pass if in_kernel else self._in_parts
                step(chunk, options)
        self.scale = None

    def _in_one_pass(self, chunk: list[Tensor], options: dict[str, Any]) -> None:
        from vla_train.optimizer import adamw_kernel

        for p in chunk:
            state, gradient = self.state[p], p.grad
            assert gradient is not None
            moments = state["exp_avg"], state["exp_avg_sq"]
            adamw_kernel.step(
                local(p),
                None if "low" not in state else local(state["low"]),
                local(gradient).contiguous(),
                local(moments[0]),
                local(moments[1]),
                self.scale,
                **options,
                number=state["step"],
            )

    def _in_parts(self, chunk: list[Tensor], options: dict[str, Any]) -> None:
        if self.scale is not None and self.scale.isnan():
            return
        states = [self.state[p] for p in chunk]
        masters = self._masters(chunk)
        gradients = [local(p.grad).float() for p in chunk if p.grad is not None]
        if self.scale is not None:
            gradients = [g * self.scale for g in gradients]
        means, squares = ([moment.read(state) for state in states] for moment in MOMENTS)
        adamw(
            masters,
            gradients,
            means,
            squares,
            [],
            [torch.tensor(float(s["step"] - 1)) for s in states],
            amsgrad=False,
            maximize=False,
            beta1=options["betas"][0],
            beta2=options["betas"][1],
            lr=options["lr"],
            weight_decay=options["weight_decay"],
            eps=options["eps"],
        )
        for p, state, master, mean, square in zip(chunk, states, masters, means, squares, strict=True):
            if "low" in state:
                high, low = split(master)
                local(p).copy_(high)
                local(state["low"]).copy_(low)
            for moment, value in zip(MOMENTS, (mean, square), strict=True):
                moment.write(state, value)

    def _masters(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        states = [(p, self.state[p]) for p in parameters]
        return [join(local(p), local(s["low"])) if "low" in s else local(p) for p, s in states]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; torch's own would round everything to the weights' type."""
        super().load_state_dict({**state_dict, "state": {}})
        names = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for name, parameter in zip(names, own, strict=True):
            if name in state_dict["state"]:
                saved = state_dict["state"][name]
                moved = {k: v.to(parameter.device) if isinstance(v, Tensor) else v for k, v in saved.items()}
                self.state[parameter] = counted(moved, True)


def counted(state: Mapping[str, Any], own: bool) -> dict[str, Any]:
    """A weight's state with its number of steps as this optimizer keeps it, or else as torch's AdamW does."""
    number = float(state["step"])
    return {**state, "step": int(number) if own else torch.tensor(number)}


def _chunks(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    chunk: list[Tensor] = []
    held = 0
    for parameter in parameters:
        chunk.append(parameter)
        held += parameter.numel()
        if held >= CHUNK:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, float32; 0 without any."""
    held = [gradient for gradient in gradients if gradient.numel()]
    if not held:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(held, 2, torch.float32)))
