"""Integrating a velocity field to actions, free or with part of the chunk settled (real-time chunking).

Shape legend: B rows, T action steps, A action dims.

Time runs from 0 (noise) to 1 (actions), so the actions that a point ``x`` leads to are estimated as
``x + (1 - t) velocity(x)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from vla_core.errors import UserError
from vla_core.interfaces import Constraint
from vla_core.traits import HeadTraits

Field: TypeAlias = Callable[[Tensor, int], Tensor]
"""``(x [B, T, A], k)`` -> the velocity there in Euler step k, fp32."""


class ChunkingConfig(Protocol):
    """What a head's config says about denoise steps and real-time chunking."""

    @property
    def steps(self) -> int: ...

    @property
    def rtc(self) -> str: ...

    @property
    def rtc_max_delay(self) -> int: ...


def check(
    noise: Tensor, constraint: Constraint | None, shape: tuple[int, int], config: ChunkingConfig
) -> None:
    """Raise :class:`UserError` for noise or a constraint that does not fit a chunk of ``shape`` (T, A)."""
    if tuple(noise.shape[1:]) != shape:
        raise UserError(f"noise: shape {list(noise.shape)} must be [B, {shape[0]}, {shape[1]}]")
    if constraint is None:
        return
    if constraint.actions.shape != noise.shape or constraint.weights.shape != noise.shape[:2]:
        raise UserError(
            f"constraint: actions {list(constraint.actions.shape)} and weights "
            f"{list(constraint.weights.shape)} must be {list(noise.shape)} and {list(noise.shape[:2])}"
        )
    longest = traits(config).longest_delay
    if longest is not None and (constraint.n_frozen or 0) > longest:
        raise UserError(
            f"constraint: {constraint.n_frozen} frozen steps, the head was trained for at most {longest} "
            "(rtc_max_delay); use rtc: guidance, or answer faster"
        )


def traits(config: ChunkingConfig, noise_dim: int | None = None) -> HeadTraits:
    """Of a flow-matching head: it keeps a constraint, of as many frozen steps as it was trained for."""
    longest = config.rtc_max_delay if config.rtc == "training_time" else None
    return HeadTraits(True, longest, noise_dim, config.steps)


def euler(field: Field, noise: Tensor, steps: int) -> Tensor:
    """From ``noise`` to actions ``[B, T, A]`` fp32 in equal steps."""
    x = noise.float()
    for k in range(steps):
        x = x + field(x, k) / steps
    return x


def padded(field: Field, dims: Tensor | None) -> Field:
    """``field`` with velocity 0 in the dims a row does not have (``dims [B, A]``); None: it has all."""
    if dims is None:
        return field
    return lambda x, k: torch.where(dims[:, None], field(x, k), 0.0)


def guidance_weight(t: float, largest: float) -> float:
    """``(t^2 + (1 - t)^2) / (t (1 - t))``, at most ``largest`` (arXiv 2506.07339).

    Pseudo-inverse guidance (PiGDM) of a flow: how far the estimate of the actions can be trusted at
    time t. Infinite at both ends, hence the bound.
    """
    scale = t * (1.0 - t)
    return largest if scale <= 0 else min(largest, (t * t + (1.0 - t) ** 2) / scale)


def guided(field: Field, constraint: Constraint, dims: Tensor | None, steps: int, largest: float) -> Field:
    """``field`` steered so that the actions it leads to meet the constraint (arXiv 2506.07339).

    Adds the vector-Jacobian product of the estimated actions with their weighted error. Rows with
    weights 0 get exactly what ``field`` gives.

    Works under ``torch.inference_mode`` when all tensors that ``field`` closes over pass through
    :func:`for_gradient`.
    """
    with torch.inference_mode(False):
        # Copies: autograd may not save tensors that were made under inference_mode.
        wanted, weight = constraint.actions.float().clone(), constraint.weights.float()[..., None].clone()
        if dims is not None:
            weight = weight * dims[:, None].clone()

    def steered(x: Tensor, k: int) -> Tensor:
        t = k / steps
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            velocity = field(x, k)
            estimate = x + (1.0 - t) * velocity
            # where, not a product alone: actions of free steps are not read, and may be NaN.
            error = torch.where(weight > 0, weight * (wanted - estimate.detach()), 0.0)
            (pull,) = torch.autograd.grad(estimate, x, error)
        return velocity.detach() + guidance_weight(t, largest) * pull

    return steered


def held(field: Field, constraint: Constraint) -> Field:
    """``field`` evaluated with the frozen steps in place (it must know that they are clean)."""
    frozen = constraint.frozen[..., None]
    return lambda x, k: field(torch.where(frozen, constraint.actions.float(), x), k)


def keep(constraint: Constraint, actions: Tensor) -> Tensor:
    """``actions [B, T, A]`` with the frozen steps exactly those of the constraint."""
    return torch.where(constraint.frozen[..., None], constraint.actions.float(), actions)


def for_gradient(value: Any) -> Any:
    """``value`` (tensors in dataclasses and tuples) with copies in place of inference tensors.

    What was computed under ``torch.inference_mode`` can't be saved for a backward pass; its copy made
    outside can. Call it inside ``torch.inference_mode(False)``.
    """
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value.detach()
    if isinstance(value, tuple):
        return tuple(for_gradient(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: for_gradient(getattr(value, f.name)) for f in fields(value)})
    return value
