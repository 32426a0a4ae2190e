"""Units of numbers that can be made each other's; any other word is a unit of its own."""

from __future__ import annotations

FACTORS = {"rad": ("angle", 1.0), "deg": ("angle", 0.017453292519943295)}
FACTORS |= {"m": ("length", 1.0), "cm": ("length", 0.01), "mm": ("length", 0.001)}
FACTORS |= {"1": ("share", 1.0), "%": ("share", 0.01)}
"""Unit -> what it measures, and its size."""


def measure_the_same(one: str, other: str) -> bool:
    """Whether a number of one unit can be made one of the other."""
    return one in FACTORS and other in FACTORS and FACTORS[one][0] == FACTORS[other][0]


def apart(one: str, other: str) -> bool:
    """Whether numbers of the two measure the same in two sizes, so that they cannot be subtracted."""
    return one != other and measure_the_same(one, other)
