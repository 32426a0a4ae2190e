"""How overlapping chunks are averaged into one action a step, as rollouts, robots and evaluations are told.

The average itself is ``vla_serve.clients.ensemble``; this half is shared with ``trainer.evaluation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla_core.errors import UserError, suggest
from vla_core.ranges import Count, Finite, NonNegative, check_ranges
from vla_core.rotations import DIMS
from vla_core.specs import ActionSpec, GroupSpec


@dataclass(frozen=True)
class Ensembling:
    """One of two ways to weigh what the chunks say, with the names that lerobot, CogACT and StarVLA use.

    Args:
        temporal_ensemble_coeff: ACT's m (arXiv 2304.13705): weights ``exp(-m * i)``, where ``i = 0`` is the
            oldest chunk. 0 is the plain mean; ACT has 0.01.
        adaptive_ensemble_alpha: CogACT's (arXiv 2411.19650): weights ``exp(alpha * cosine)`` of a chunk's
            action with the newest one's. CogACT and StarVLA have 0.1.
        action_ensemble_horizon: latest chunks that speak about a step, at most; None: all that reach it, or 7
            of the adaptive ensemble (StarVLA's for WidowX; it takes 2 for the Google robot).
        ensemble_newest: action groups taken from the newest chunk alone, such as a gripper.

    Raises:
        UserError: both weights or none, or a number out of its range.
    """

    temporal_ensemble_coeff: NonNegative | None = None
    adaptive_ensemble_alpha: Finite | None = None
    action_ensemble_horizon: Count | None = None
    ensemble_newest: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self)
        if (self.temporal_ensemble_coeff is None) == (self.adaptive_ensemble_alpha is None):
            raise UserError(
                "temporal_ensemble_coeff and adaptive_ensemble_alpha exclude each other; give one"
            )


def ensembling(
    temporal_ensemble_coeff: float | None,
    adaptive_ensemble_alpha: float | None,
    action_ensemble_horizon: int | None,
    ensemble_newest: Sequence[str] | None,
) -> Ensembling | None:
    """Of single settings; None: no weights are given, so each step has one chunk.

    Raises:
        UserError: see :class:`Ensembling`, or something of an ensemble without weights.
    """
    if temporal_ensemble_coeff is None and adaptive_ensemble_alpha is None:
        for name, value in (
            ("action_ensemble_horizon", action_ensemble_horizon),
            ("ensemble_newest", ensemble_newest),
        ):
            if value:
                raise UserError(
                    f"{name}: belongs to an ensemble; give temporal_ensemble_coeff or adaptive_ensemble_alpha"
                )
        return None
    return Ensembling(
        temporal_ensemble_coeff,
        adaptive_ensemble_alpha,
        action_ensemble_horizon,
        tuple(ensemble_newest or ()),
    )


def check_averages(spec: ActionSpec, newest: Sequence[str]) -> None:
    """Whether what several chunks say about a step has a mean, but for the groups ``newest``.

    Raises:
        UserError: an unknown group, offsets from the state of a chunk's start (another for each chunk), or
            rotations of unknown dims.
    """
    names = [group.name for group in spec.groups]
    for name in newest:
        if name not in names:
            raise UserError(f"ensemble_newest: no action group '{name}'{suggest(name, names)}")
    for group in spec.groups:
        if group.name not in newest:
            _check(group)


def _check(group: GroupSpec) -> None:
    if group.representation == "relative":
        raise UserError(
            f"{group.name}: offsets from the state at a chunk's start cannot be averaged with those of "
            "another chunk, whose state is another; name it in ensemble_newest, or use real-time chunking"
        )
    if group.rotation != "none" and group.dim % DIMS[group.rotation]:
        raise UserError(
            f"{group.name}: {group.dim} dims are no whole number of rotations ({group.rotation} has "
            f"{DIMS[group.rotation]}), and cannot be averaged; name it in ensemble_newest"
        )
