"""Real-time chunking: from what is left of a chunk to the constraint on the next (arXiv 2506.07339).

Shape legend: B rows, T action steps, A action dims, R steps left of the previous chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vla_core.errors import UserError
from vla_core.interfaces import Constraint
from vla_core.transforms import Pipeline
from vla_core.types import Float, Observation, PreviousChunk


def overlap_weights(n_frozen: int, n_left: int, horizon: int) -> Float:
    """How much each step ``[T]`` of the next chunk is bound to the previous one.

    1 for the frozen steps, then falling to 0 where the previous chunk ends: ``c (e^c - 1) / (e - 1)``
    with ``c = (R - i) / (R - n_frozen + 1)`` at step i.
    """
    step = np.arange(horizon)
    c = np.clip((n_left - step) / (n_left - n_frozen + 1), 0.0, 1.0)
    soft = c * np.expm1(c) / np.expm1(1.0)
    return np.where(step < n_frozen, 1.0, soft).astype(np.float32)


def check_previous(previous: PreviousChunk, pipeline: Pipeline) -> None:
    """Raise :class:`UserError` naming what of ``previous`` does not fit the robot."""
    spec = pipeline.input_spec.action
    shape = np.shape(previous.actions)
    if len(shape) != 2 or shape[1] != spec.dim or not 1 <= shape[0] <= spec.horizon:
        raise UserError(
            f"previous chunk: actions have shape {shape}, expected 1 to {spec.horizon} steps "
            f"of {spec.dim} dims"
        )
    if not np.isfinite(previous.actions).all():
        raise UserError("previous chunk: actions hold NaN or infinity")
    if not 0 <= previous.n_frozen <= shape[0]:
        raise UserError(
            f"previous chunk: n_frozen is {previous.n_frozen}, it must be in 0..{shape[0]} (steps left)"
        )
    if previous.n_frozen >= spec.horizon:
        raise UserError(
            f"previous chunk: n_frozen is {previous.n_frozen}, so nothing of the next {spec.horizon} steps "
            "is free; request earlier or lower control_hz"
        )


def make_constraint(
    previous: Sequence[PreviousChunk | None],
    observations: Sequence[Observation],
    pipelines: Sequence[Pipeline],
    horizon: int,
    action_dim: int,
) -> Constraint:
    """The constraint of a batch; a row without previous chunk is free.

    The remaining actions go through the forward transforms against the *present* state: an absolute
    target stays where it is, a relative one becomes an offset from where the robot is now, and the first
    delta starts there.

    Raises:
        UserError: see :func:`check_previous`.
    """
    actions_BTA = np.zeros((len(previous), horizon, action_dim), np.float32)
    weights_BT = np.zeros(actions_BTA.shape[:2], np.float32)
    for i, (left, observation, pipeline) in enumerate(zip(previous, observations, pipelines, strict=True)):
        if left is None:
            continue
        check_previous(left, pipeline)
        model = pipeline.actions(left.actions.astype(np.float32), observation.state)
        n_left = len(model)
        actions_BTA[i, :n_left, : model.shape[1]] = model
        weights_BT[i] = overlap_weights(left.n_frozen, n_left, horizon)
    return Constraint(
        torch.from_numpy(actions_BTA),
        torch.from_numpy(weights_BT),
        max((left.n_frozen for left in previous if left is not None), default=0),
    )
