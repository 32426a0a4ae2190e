"""Temporal ensembling: the action of a step is the mean of what several chunks say about it.

Shapes: T steps of a chunk, A action dims, K chunks that speak about a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from vla_core.ensembling import Ensembling, check_averages
from vla_core.errors import UserError
from vla_core.rotations import DIMS, from_matrix, to_matrix
from vla_core.specs import ActionSpec, GroupSpec
from vla_core.types import ActionChunk, Float

Array = NDArray[np.float64]

ADAPTIVE_CHUNKS = 7
"""StarVLA's for WidowX."""


class Ensemble:
    """Keeps chunks, and averages what they say about a control step.

    Rotations are averaged as rotations (the chordal mean, Hartley et al., "Rotation Averaging", 2013) in any
    parametrisation: the mean of the numbers of two turns about a half turn is no turn between them. What has
    no mean is refused: at once, offsets from the state of the chunk's start, which is another for each chunk,
    and rotations of unknown dims; and at the step, rotations too far apart to have one.

    Args:
        spec: of the chunks.
        chunks: that speak about a step, at most: the latest ones; None: all that reach it.
        newest: groups taken from the newest chunk alone, for example a gripper that is open or closed.

    Raises:
        UserError: a group that cannot be averaged and is not among ``newest``, or an unknown group.
    """

    def __init__(self, spec: ActionSpec, chunks: int | None = None, newest: Sequence[str] = ()) -> None:
        if chunks is not None and chunks < 1:
            raise UserError(f"chunks: must be at least 1, got {chunks}")
        check_averages(spec, newest)
        self._spec, self._newest = spec, frozenset(newest)
        self._limit = spec.horizon if chunks is None else min(chunks, spec.horizon)
        self._kept: deque[tuple[int, Float]] = deque(maxlen=self._limit)

    def reset(self) -> None:
        """A new episode: forget all chunks."""
        self._kept.clear()

    def add(self, chunk: ActionChunk, step: int) -> None:
        """A chunk that answers the observation of control step ``step``; steps increase."""
        if chunk.actions.shape != (self._spec.horizon, self._spec.dim):
            raise UserError(
                f"chunk: {list(chunk.actions.shape)}, expected [{self._spec.horizon}, {self._spec.dim}]"
            )
        if self._kept and step <= self._kept[-1][0]:
            raise UserError(f"step: {step} after {self._kept[-1][0]}; call reset() for a new episode")
        self._kept.append((step, chunk.actions))

    def action(self, step: int) -> Float:
        """The action ``[A]`` of control step ``step``.

        Raises:
            UserError: no chunk reaches it, or rotations that have no mean.
        """
        said = [
            actions[step - start] for start, actions in self._kept if 0 <= step - start < self._spec.horizon
        ]
        if not said:
            raise UserError(f"step: no chunk reaches step {step}; add one first")
        said_KA = np.stack(said).astype(np.float64)
        weights_K = self._weights(said_KA)
        weights_K = weights_K / weights_K.sum()
        out_A = said_KA[-1].copy()
        for group in self._spec.groups:
            part = self._spec.slices()[group.name]
            if group.name not in self._newest:
                out_A[part] = _mean(group, said_KA[:, part], weights_K)
        return out_A.astype(np.float32)

    def _weights(self, said_KA: Array) -> Array:
        raise AssertionError("of the subclass")


class TemporalEnsemble(Ensemble):
    """ACT's weights (arXiv 2304.13705): ``exp(-decay * i)``, where ``i = 0`` is the oldest chunk.

    Args:
        spec, chunks, newest: see :class:`Ensemble`.
        decay: 0 is the plain mean; the larger, the less a new chunk counts.
    """

    def __init__(
        self, spec: ActionSpec, decay: float = 0.01, chunks: int | None = None, newest: Sequence[str] = ()
    ) -> None:
        super().__init__(spec, chunks, newest)
        if not (np.isfinite(decay) and decay >= 0):
            raise UserError(f"decay: must be 0 or more, got {decay}")
        self._decay = decay

    def _weights(self, said_KA: Array) -> Array:
        weights: Array = np.exp(-self._decay * np.arange(len(said_KA)))
        return weights


class AdaptiveEnsemble(Ensemble):
    """CogACT's weights (arXiv 2411.19650), which StarVLA's evaluations use: softmax of cosine similarities.

    What an older chunk says counts by how much it points where the newest does, so that a change of plan is
    not averaged with what it gave up.

    Args:
        spec, newest: see :class:`Ensemble`.
        alpha: that multiplies the cosine.
        chunks: StarVLA takes 7 for WidowX and 2 for the Google robot.
    """

    def __init__(
        self, spec: ActionSpec, alpha: float = 0.1, chunks: int = ADAPTIVE_CHUNKS, newest: Sequence[str] = ()
    ) -> None:
        super().__init__(spec, chunks, newest)
        if not np.isfinite(alpha):
            raise UserError(f"alpha: must be finite, got {alpha}")
        self._alpha = alpha

    def _weights(self, said_KA: Array) -> Array:
        newest_A = said_KA[-1]
        norms_K = np.linalg.norm(said_KA, axis=1) * np.linalg.norm(newest_A)
        cosines_K = said_KA @ newest_A / (norms_K + 1e-7)
        weights: Array = np.exp(self._alpha * (cosines_K - cosines_K.max()))
        return weights


def ensemble(spec: ActionSpec, how: Ensembling) -> Ensemble:
    """The ensemble of chunks of ``spec`` that ``how`` describes."""
    chunks, newest = how.action_ensemble_horizon, how.ensemble_newest
    if how.temporal_ensemble_coeff is not None:
        return TemporalEnsemble(spec, how.temporal_ensemble_coeff, chunks, newest)
    assert how.adaptive_ensemble_alpha is not None
    return AdaptiveEnsemble(spec, how.adaptive_ensemble_alpha, chunks or ADAPTIVE_CHUNKS, newest)


def _mean(group: GroupSpec, said_KD: Array, weights_K: Array) -> Array:
    if group.rotation == "none":
        mean: Array = weights_K @ said_KD
        return mean
    turns = said_KD.reshape(len(said_KD), -1, DIMS[group.rotation])
    matrix = np.einsum("k,krij->rij", weights_K, to_matrix(turns, group.rotation))
    u, sizes, vt = np.linalg.svd(matrix)
    sign = np.sign(np.linalg.det(u @ vt))
    # The nearest rotation is unique exactly where these two do not cancel.
    if (sizes[:, 1] + sign * sizes[:, 2] < 1e-3).any():
        raise UserError(
            f"{group.name}: the chunks' rotations are so far apart that they have no mean; take it from "
            "the newest chunk (ensemble_newest)"
        )
    u[..., -1] *= sign[:, None]
    return from_matrix(u @ vt, group.rotation).reshape(-1)
