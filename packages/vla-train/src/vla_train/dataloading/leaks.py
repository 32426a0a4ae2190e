"""Held-out episodes that another entry of the same data set trains on: they say nothing of unseen ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Split:
    """An entry's episodes; ``path`` is its data set's, None where the source has none."""

    label: str
    path: Any
    train: Sequence[int]
    held: Sequence[int]

    @property
    def place(self) -> Path | None:
        """Where the data set lies."""
        return Path(self.path).expanduser().resolve() if isinstance(self.path, str) else None


def leaks(splits: Sequence[Split]) -> Iterator[str]:
    """A line for each two entries of which one trains on what the other holds out."""
    for one in splits:
        for other in splits:
            if other is one or one.place is None or one.place != other.place:
                continue
            both = sorted(set(one.held) & set(other.train))
            if both:
                shown = ", ".join(map(str, both[:8])) + (
                    f" and {len(both) - 8} more" if len(both) > 8 else ""
                )
                yield (
                    f"data set {one.label} holds out episodes that {other.label} trains on ({shown}): their "
                    "validation says nothing of what was never seen; give the entries other episodes, or "
                    "val_fraction: 0"
                )
