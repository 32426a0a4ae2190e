"""How products of few rows are cut for a GPU: chosen by ``benchmarks/serve/few_rows.py``."""

from __future__ import annotations

from dataclasses import dataclass, replace

PROGRAMS = 132
"""Multiprocessors of an H100 or H200."""

MOST_ROWS = 128

SHARED = 200_000
"""Bytes of a multiprocessor's shared memory that a program takes at most."""


@dataclass(frozen=True)
class Plan:
    """How a product is cut.

    Args:
        columns: outputs of a tile.
        depth: inputs that are multiplied at a time.
        split: programs that share a tile's inputs.
        stages: depths that are on their way at a time.
        warps: of a program.
        ahead: ask for the weight before the kernel in front is done.
    """

    columns: int
    depth: int
    split: int
    stages: int
    warps: int = 4
    ahead: bool = True


PLANS: dict[tuple[int, int, bool], Plan] = {}
"""By (outputs, inputs, paired), where something better is known than :func:`plan_of` guesses."""


def plan_of(outputs: int, inputs: int, paired: bool) -> Plan | None:
    """The plan of a product; None: sizes that tiles do not divide.

    Args:
        outputs: of the product, those of one half with ``paired``.
        inputs: of the product.
        paired: two weights are read, and their results multiplied.
    """
    known = PLANS.get((outputs, inputs, paired))
    if known is not None:
        return known
    columns = 32 if paired else 64
    if outputs % columns or inputs % 128:
        return None
    split = max(1, min(-(-PROGRAMS // (outputs // columns)), inputs // 128, 16))
    # Two programs find place in a multiprocessor.
    return Plan(columns, 64, split, 6)


def taller(plan: Plan, paired: bool) -> Plan:
    """For 65 to 128 rows: half the columns, so that registers suffice, and the depths that find place."""
    columns = max(plan.columns // 2, 32)
    depths = SHARED // (2 * plan.depth * (MOST_ROWS + columns * (2 if paired else 1)))
    return replace(plan, columns=columns, stages=min(plan.stages, depths))
