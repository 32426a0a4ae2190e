"""Rectified-flow arithmetic, always in fp32 (arXiv 2209.03003, 2210.02747).

Shape legend: B rows, R repeats (noise draws that share an observation), T action steps, A action dims.

Time runs from 0 (noise) to 1 (actions): ``x_t = (1 - t) noise + t actions``, velocity
``actions - noise``. The network sees time as one of ``n_buckets`` integers. In bf16 half or more
of 1000 buckets merge with a neighbour, hence fp32 here whatever the dtype of the head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vla_core.errors import UserError


def sample_time(shape: tuple[int, ...], device: torch.device, alpha: float, s: float) -> Tensor:
    """Training times in [0, 1], fp32: ``b ~ Beta(alpha, 1)``, ``t = (s - min(b, s)) / s``.

    The mass sits at small t, where the noise is large (pi0, arXiv 2410.24164). Beta(alpha, 1) has
    the cumulative distribution ``b ** alpha``, so it is drawn by inverting that; the draw comes
    from torch's default generator.
    """
    b = torch.rand(shape, device=device, dtype=torch.float32).pow(1.0 / alpha)
    return (s - b.clamp(max=s)) / s


def bucket(time: Tensor, n_buckets: int) -> Tensor:
    """Integer time ``long(n_buckets * t)``, at most ``n_buckets - 1``."""
    return (time.float() * n_buckets).long().clamp(0, n_buckets - 1)


def bucket_grid(steps: int, n_buckets: int, device: torch.device) -> Tensor:
    """Buckets of ``steps`` Euler steps, long ``[steps]``: k / steps without floating-point doubt."""
    return torch.arange(steps, device=device) * n_buckets // steps


def interpolate(actions: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Point on the path and its velocity, fp32.

    Args:
        actions: ``[..., T, A]``.
        noise: same shape (or broadcastable).
        time: ``[...]`` in [0, 1].
    """
    actions, noise = actions.float(), noise.float()
    t = time.float()[..., None, None]
    return (1.0 - t) * noise + t * actions, actions - noise


def sample_delay(shape: tuple[int, ...], device: torch.device, longest: int) -> Tensor:
    """Simulated delays, long, uniform in 0..longest, from torch's default generator."""
    return torch.randint(longest + 1, shape, device=device)


def draws(
    actions: Tensor, noise: Tensor | None, time: Tensor | None, repeats: int, alpha: float, s: float
) -> tuple[Tensor, Tensor]:
    """Noise ``[B, R, T, A]`` and time ``[B, R]`` for ``actions [B, T, A]``, fp32.

    What is given is used as it is (``[B * R, ...]``, a row's repeats adjacent, is accepted too) and
    sets R; the rest is drawn from torch's default generator, with ``repeats`` when neither is given.

    Raises:
        UserError: shapes that do not fit the actions or each other.
    """
    rows, horizon, dims = actions.shape
    if rows and noise is not None:
        repeats = noise.numel() // (rows * horizon * dims)
    elif rows and time is not None:
        repeats = time.numel() // rows
    shape = (rows, repeats, horizon, dims)
    if noise is None:
        noise = torch.randn(shape, device=actions.device, dtype=torch.float32)
    if time is None:
        time = sample_time(shape[:2], actions.device, alpha, s)
    for name, tensor, full in (("noise", noise, shape), ("time", time, shape[:2])):
        flat = (rows * repeats, *full[2:])
        if tuple(tensor.shape) not in (full, flat):
            raise UserError(f"{name}: shape {list(tensor.shape)} must be {list(full)} or {list(flat)}")
    return noise.float().reshape(shape), time.float().reshape(shape[:2])
