"""How long a CUDA graph takes that goes through many alike parts."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TypeVar

import torch

R = TypeVar("R")


def captured(run: Callable[[], R], warm: int) -> tuple[torch.cuda.CUDAGraph, R]:
    """``run`` as a graph that was replayed once, after ``warm`` runs; and what each replay writes."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(warm):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    graph.replay()
    torch.cuda.synchronize()
    return graph, out


def microseconds(graph: torch.cuda.CUDAGraph, parts: int, times: int) -> float:
    """Of one of its ``parts``: median of ``times`` measurements of four replays each."""
    taken = []
    for _ in range(times):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(4):
            graph.replay()
        end.record()
        end.synchronize()
        taken.append(1000 * begin.elapsed_time(end) / parts / 4)
    return statistics.median(taken)
