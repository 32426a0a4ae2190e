"""Errors on held-out episodes by group of the action and by step of the chunk, in real units.

T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from vla_core.specs import ActionSpec

Double = NDArray[np.float64]


@dataclass(frozen=True)
class StepErrors:
    """Sums over samples, in real units.

    Args:
        absolute, squared: of the errors, ``[T, A]``.
        counts: valid entries ``[T, A]``.
    """

    absolute: Double
    squared: Double
    counts: Double

    def __add__(self, other: StepErrors) -> StepErrors:
        return StepErrors(
            self.absolute + other.absolute, self.squared + other.squared, self.counts + other.counts
        )


def of_groups(
    measured: Sequence[tuple[str, str, ActionSpec, StepErrors]],
) -> dict[str, float]:
    """Mean absolute and squared errors of each group, over its dims and valid steps.

    ``val/group_mae/GROUP``, ``val/group_mse/GROUP`` and ``val/group_mae_at/GROUP/STEP`` (STEP from 00); with
    several robots ``ROBOT/GROUP``, of all its data sets. Of several data sets also
    ``data/LABEL/val_group_mae/GROUP``.

    Args:
        measured: label of the data set, robot, its action, and the sums of each data set.
    """
    several = len({robot for _, robot, _, _ in measured}) > 1
    robots: dict[str, tuple[ActionSpec, StepErrors]] = {}
    out = {}
    for label, robot, spec, sums in measured:
        before = robots.get(robot)
        robots[robot] = (spec, sums if before is None else before[1] + sums)
        if len(measured) > 1:
            for name, dims in _dims(spec):
                out[f"data/{label}/val_group_mae/{name}"] = _mean(sums.absolute, sums.counts, dims)
    for robot, (spec, sums) in robots.items():
        prefix = f"{robot}/" if several else ""
        for name, dims in _dims(spec):
            out[f"val/group_mae/{prefix}{name}"] = _mean(sums.absolute, sums.counts, dims)
            out[f"val/group_mse/{prefix}{name}"] = _mean(sums.squared, sums.counts, dims)
            for step in range(spec.horizon):
                one = slice(step, step + 1)
                out[f"val/group_mae_at/{prefix}{name}/{step:02d}"] = _mean(
                    sums.absolute[one], sums.counts[one], dims
                )
    return out


def _dims(spec: ActionSpec) -> list[tuple[str, slice]]:
    found, start = [], 0
    for group in spec.groups:
        found.append((group.name, slice(start, start + group.dim)))
        start += group.dim
    return found


def _mean(sums: Double, counts: Double, dims: slice) -> float:
    return float(sums[:, dims].sum() / max(counts[:, dims].sum(), 1))
