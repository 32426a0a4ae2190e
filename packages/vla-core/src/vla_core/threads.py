"""How many CPU threads serve a small model best, by measurement: torch's default is for large ones."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

RUNS = 5
GAIN = 0.9
"""More threads must take so much less time than fewer: they also take cores from everything else."""


def fastest_thread_count(run: Callable[[], object], most: int | None = None) -> int:
    """Time ``run`` with 1, 2, 4, ... threads, and leave this thread with the best number.

    Args:
        run: what will be done most of the time.
        most: threads, at most; None: torch's own number.
    """
    limit = most or torch.get_num_threads()
    counts = sorted({*(2**i for i in range(limit.bit_length()) if 2**i <= limit), limit})
    best, best_s = 1, float("inf")
    for count in counts:
        torch.set_num_threads(count)
        run()
        seconds = statistics.median(_seconds(run) for _ in range(RUNS))
        if seconds < GAIN * best_s:
            best, best_s = count, seconds
    torch.set_num_threads(best)
    return best


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
