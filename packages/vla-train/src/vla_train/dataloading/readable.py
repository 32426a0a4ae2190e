"""A sample to look at before training, where some may be damaged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from vla_core.types import Sample
from vla_data.errors import BadDataError

TRIES = 16
"""Samples among which one must be readable where bad ones go to quarantine."""


def first_readable(read: Callable[[int], Sample], count: int, tries: int = TRIES) -> Sample:
    """The first of ``tries`` evenly spaced samples of ``count`` that can be read.

    Raises:
        UserError: what is wrong with the last of them.
    """
    places = [int(i) for i in np.unique(np.linspace(0, count - 1, min(tries, count)).round())]
    for place in places[:-1]:
        try:
            return read(place)
        except BadDataError:
            # The next one may do; in training it goes to quarantine, and counts there.
            continue
    return read(places[-1])
