"""A few out of many, without knowing how many there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def some(items: Iterable[T], count: int) -> list[T]:
    """At most ``count`` of ``items``, each as likely as the others, always the same (reservoir sampling)."""
    rng = np.random.default_rng(0)
    kept: list[T] = []
    for i, item in enumerate(items):
        if i < count:
            kept.append(item)
        elif (place := int(rng.integers(0, i + 1))) < count:
            kept[place] = item
    return kept
