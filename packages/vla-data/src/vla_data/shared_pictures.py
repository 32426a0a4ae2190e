"""Episodes of one video that show the same frames: other instructions of the same rows, or a wrong place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from vla_core.types import Float

from vla_data.errors import BadDataError
from vla_data.formats.layout import Episode, Layout


def shared_pictures(
    layout: Layout, episodes: Sequence[Episode], keys: Iterable[str], rows: Float | None
) -> Iterator[str]:
    """A line for each video feature of ``keys`` where nothing tells whether episodes may share frames.

    Args:
        layout, episodes: what is looked at.
        keys: the features; those that are no videos have no places.
        rows: ``[F, D]``, the numbers of the episodes' frames in that order; None: there are none.

    Raises:
        BadDataError: two rows have one picture and other numbers, so that one is at a wrong place.
    """
    lengths = [len(e) for e in episodes]
    starts = dict(zip((e.index for e in episodes), np.cumsum([0, *lengths]), strict=False))
    for key in keys:
        files: dict[Path, list[tuple[int, int, Episode]]] = {}
        for episode in episodes:
            if key in episode.videos:
                file, seconds, _ = episode.videos[key]
                files.setdefault(file, []).append((round(seconds * layout.fps), episode.index, episode))
        for file, placed in files.items():
            for (one, _, before), (other, _, after) in pairwise(sorted(placed, key=lambda at: at[:2])):
                both = min(one + len(before), other + len(after)) - other
                if both <= 0 or not (before.stop <= after.start or after.stop <= before.start):
                    continue
                text = f"{file}: episodes {before.index} and {after.index} both show frame {other}"
                if rows is None:
                    yield f"{text}; are their from_timestamp right?"
                    break
                at = (starts[before.index] + other - one, starts[after.index])
                ours, theirs = (rows[place : place + both] for place in at)
                if not np.allclose(ours, theirs, rtol=1e-5, atol=1e-6):
                    begins = [e.videos[key][1] for e in (before, after)]
                    raise BadDataError(
                        f"{text}, and their numbers differ there: their from_timestamp is {begins[0]:g} s "
                        f"and {begins[1]:g} s, and the first has {len(before)} frames; correct it in "
                        "meta/episodes"
                    )
