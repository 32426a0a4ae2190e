"""Actions that do not move with the state as their description says. Shapes: F frames, D dims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from vla_core.specs import GroupSpec
from vla_core.types import Float

from vla_data.robot.guess import GRIPPER, correlation, kind_of

_PLAIN = ("none", "none")
LEAST, MOST = 50, 20_000
"""So many steps are needed to tell, and looked at."""
FOLLOWS, DOES_NOT = 0.8, 0.5
"""Correlations; the commands of a robot follow its state, or the change of it, more closely than that."""
APART = 15.0
"""Degrees and radians are 57 apart."""


def odd_commands(
    action: tuple[Float, Sequence[GroupSpec]],
    state: tuple[Float, Sequence[GroupSpec]],
    inside: NDArray[np.bool_],
) -> Iterator[str]:
    """A line for each action group that moves otherwise than it is said to.

    Args:
        action, state: rows ``[F, D]`` and their groups; compared are groups of one name, or the only two.
        inside: ``[F - 1]``, whether a row and the next are of one episode.
    """
    steps = np.flatnonzero(inside)
    steps = steps[:: max(1, -(-len(steps) // MOST))]
    if len(steps) < LEAST:
        return
    states = {group.name: (group, part) for group, part in _parts(*state)}
    only = len(action[1]) == 1 == len(state[1])
    for group, rows in _parts(*action):
        its, part = next(iter(states.values())) if only else states.get(group.name, (None, rows))
        velocity = group.unit.endswith("/s") or "velocit" in group.name.lower()
        if its is None or its.dim != group.dim or velocity or (group.gripper, group.rotation) != _PLAIN:
            continue
        a, now, then = rows[steps], part[steps], part[steps + 1]
        if group.representation == "absolute" and now.std(axis=0).max() > 1e-9 and _equal(a, now):
            yield (
                f"action '{group.name}' is equal to the state '{its.name}' of the same frame: a policy would "
                "learn to copy its input; take the commands that were sent, or the state of the next frame"
            )
            continue
        target, change = correlation(a, then), correlation(a, then - now)
        if group.representation == "absolute" and change > FOLLOWS and target < DOES_NOT:
            yield (
                f"action '{group.name}' is said to be absolute, and follows the change of the state "
                f"({change:.2f}), not the state ({target:.2f}); is its representation delta?"
            )
        if group.representation == "delta" and target > FOLLOWS and change < DOES_NOT:
            yield (
                f"action '{group.name}' is said to be a delta, and follows the next state ({target:.2f}), "
                f"not its change ({change:.2f}); is its representation absolute?"
            )
        wide, far = a.std(axis=0), then.std(axis=0)
        moving = (wide > 1e-9) & (far > 1e-9)
        if (
            group.representation == "absolute"
            and target > FOLLOWS
            and moving.any()
            and group.unit == its.unit
            and kind_of(group.name)[1] != GRIPPER  # told from 0 to 1, and measured as a width
        ):
            ratio = float(np.median(wide[moving] / far[moving]))
            if not 1 / APART < ratio < APART:
                yield (
                    f"action '{group.name}' follows the state '{its.name}', and moves {ratio:.3g} times as "
                    "far; are both in one unit?"
                )


def _equal(a: Float, b: Float) -> bool:
    return bool((np.abs(a - b) <= 1e-6 * np.maximum(np.abs(b).max(axis=0), 1e-6)).all())


def _parts(rows: Float, groups: Sequence[GroupSpec]) -> Iterator[tuple[GroupSpec, Float]]:
    start = 0
    for group in groups:
        yield group, rows[:, start : start + group.dim]
        start += group.dim
