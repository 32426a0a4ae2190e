"""How products of few rows are cut for a GPU: chosen by ``benchmarks/serve/few_rows.py``."""

from __future__ import annotations

from dataclasses import dataclass

MOST_ROWS = 64
"""Rows that programs compute, whatever their number: a row does not depend on how many there are."""


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


PLANS: dict[tuple[int, int, bool], Plan] = {
    (2048, 2048, False): Plan(columns=32, depth=128, split=2, stages=6),
    (8192, 2048, False): Plan(columns=64, depth=128, split=1, stages=6),
    (2048, 8192, False): Plan(columns=64, depth=128, split=4, stages=6),
    (2560, 1024, False): Plan(columns=64, depth=64, split=3, stages=8),
    (1024, 2048, False): Plan(columns=32, depth=128, split=4, stages=6),
    (4096, 1024, True): Plan(columns=32, depth=128, split=1, stages=6),
    (1024, 4096, False): Plan(columns=32, depth=128, split=4, stages=6),
}
"""By (outputs, with ``paired`` of one half, inputs, paired): the best on an H200. All others are torch's.

So is QwenPI's (6144, 2048), which takes 14.0 us at best and torch's product 10.3.
"""
