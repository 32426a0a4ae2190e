"""The options of programs that may average overlapping chunks."""

from __future__ import annotations

import argparse

from vla_core.ensembling import Ensembling, ensembling


def add_ensemble(parser: argparse._ActionsContainer) -> None:
    """``--temporal_ensemble_coeff`` and what belongs to it; see :func:`vla_core.ensembling.ensembling`."""
    add = parser.add_argument
    add(
        "--temporal_ensemble_coeff",
        type=float,
        metavar="M",
        help="temporal ensembling (ACT): an action is the mean of what all chunks say about its step, with "
        "weights exp(-M * i), i = 0 the oldest; ACT has 0.01",
    )
    add(
        "--adaptive_ensemble_alpha",
        type=float,
        metavar="ALPHA",
        help="adaptive ensembling (CogACT, StarVLA): weights exp(ALPHA * cosine with the newest); StarVLA "
        "has 0.1",
    )
    add(
        "--action_ensemble_horizon",
        type=int,
        metavar="N",
        help="latest chunks that are averaged (default: all that reach the step; adaptive: 7)",
    )
    add(
        "--ensemble_newest",
        action="append",
        metavar="GROUP",
        help="action group taken from the newest chunk alone, such as a gripper; may be given several times",
    )


def ensembling_of(args: argparse.Namespace) -> Ensembling | None:
    """What the options say; None: nothing of an ensemble."""
    return ensembling(
        args.temporal_ensemble_coeff,
        args.adaptive_ensemble_alpha,
        args.action_ensemble_horizon,
        args.ensemble_newest,
    )
