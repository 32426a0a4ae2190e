"""What the model's thread did: rows of each run, how long it took, and what lay between two of them."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any


class Runs:
    """Watches the runs of an engine from now on."""

    def __init__(self, engine: Any) -> None:
        self._seen: list[tuple[float, float, int]] = []
        self._sizes: tuple[int, ...] = engine._sizes
        run = engine._runner.run

        def timed(tickets: list[Any]) -> Any:
            began = time.monotonic()
            outcome = run(tickets)
            self._seen.append((began, time.monotonic(), len(tickets)))
            return outcome

        engine._runner.run = timed

    def clear(self) -> None:
        """Forget what was seen."""
        self._seen = []

    def summary(self) -> dict[str, Any]:
        """Of the runs since the last :meth:`clear`.

        ``rows_per_run``: mean; ``filled``: rows of requests among the rows that were computed; ``busy``:
        share of the time in which a run was under way; ``gap_ms``: median between two; ``sizes``: batch size
        -> number of runs and their median in milliseconds.
        """
        if len(self._seen) < 2:
            return {"runs": len(self._seen)}
        ran = [(end - began, self._size(rows)) for began, end, rows in self._seen]
        gaps = [1000 * (b[0] - a[1]) for a, b in zip(self._seen, self._seen[1:], strict=False)]
        rows = sum(rows for _, _, rows in self._seen)
        count = Counter(size for _, size in ran)
        return {
            "runs": len(self._seen),
            "rows_per_run": round(rows / len(self._seen), 1),
            "filled": round(rows / sum(size for _, size in ran), 2),
            "busy": round(sum(took for took, _ in ran) / (self._seen[-1][1] - self._seen[0][0]), 3),
            "gap_ms": round(statistics.median(gaps), 2),
            "sizes": {
                size: [n, round(1000 * statistics.median(took for took, of in ran if of == size), 1)]
                for size, n in sorted(count.items())
            },
        }

    def _size(self, rows: int) -> int:
        return next(size for size in self._sizes if size >= rows)
