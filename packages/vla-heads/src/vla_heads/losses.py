"""Masked averages and shape checks that every head shares.

Shape legend: B rows, R repeats, T action steps, A action dims.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vla_core.errors import UserError
from vla_core.features import ROWS, Terms


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``value`` over the True entries of ``mask`` (broadcastable to it), in fp32.

    Masked entries reach neither the mean nor a gradient, even when they are NaN. Without a single
    valid entry the result is 0 and still has a (zero) gradient.
    """
    mask = mask.expand_as(value)
    kept = torch.where(mask, value.float(), 0.0)
    return kept.sum() / mask.sum().clamp(min=1)


def action_terms(value: Tensor, mask: Tensor, rows: bool) -> Terms:
    """``{"action_loss": masked_mean(value, mask)}`` of ``value [B, ...]``; ``rows``: and each row's share."""
    terms = {"action_loss": masked_mean(value, mask)}
    if rows:
        mask = mask.expand_as(value).flatten(1)
        kept = torch.where(mask, value.detach().float().flatten(1), 0.0)
        terms[ROWS] = torch.stack([kept.sum(1), mask.sum(1).float()], dim=1)
    return terms


def check_targets(actions: Tensor, mask: Tensor, horizon: int, action_dim: int) -> None:
    """Raise :class:`UserError` unless both are ``[B, horizon, action_dim]`` and the mask is bool."""
    for name, tensor in (("actions", actions), ("action_mask", mask)):
        if tensor.ndim != 3 or tuple(tensor.shape[1:]) != (horizon, action_dim):
            raise UserError(
                f"{name}: shape {list(tensor.shape)} does not fit the head's [B, {horizon}, {action_dim}]; "
                "build the head with the dataset's horizon and action dims"
            )
    if mask.dtype != torch.bool:
        raise UserError(f"action_mask: dtype {mask.dtype} must be torch.bool; compare with != 0 to convert")


def masked_state(state: Tensor | None, state_mask: Tensor | None, state_dim: int) -> Tensor | None:
    """State ``[B, D]`` fp32 with padded dims zeroed; None when ``state_dim`` is 0.

    Raises:
        UserError: the state is missing, unexpected or of the wrong width.
    """
    if state_dim == 0:
        if state is not None and state.shape[-1] != 0:
            raise UserError(
                f"state: got {state.shape[-1]} dims but the head was built with state_dim 0; "
                "build it with the robot's state_dim"
            )
        return None
    if state is None:
        raise UserError(
            f"state: missing, the head was built with state_dim {state_dim}; provide HeadInputs.state"
        )
    if state.shape[-1] != state_dim:
        raise UserError(f"state: got {state.shape[-1]} dims, the head was built with state_dim {state_dim}")
    state = state.float()
    return state if state_mask is None else torch.where(state_mask, state, 0.0)
