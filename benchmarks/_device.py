"""Timing, host-synchronisation counts and profiles on a CPU or one GPU."""

from __future__ import annotations

import signal
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


class SectionTimeout(RuntimeError):
    """A section ran past its time limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`SectionTimeout` in the main thread after ``seconds``."""

    def expire(signum: int, frame: Any) -> None:
        raise SectionTimeout(f"longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def synchronize(device: torch.device) -> None:
    """Wait for the device; nothing to wait for on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(fn: Callable[[], object], repeats: int, warmup: int, device: torch.device) -> list[float]:
    """One time a call, each waited for: CUDA events on a GPU, the wall clock on a CPU."""
    for _ in range(warmup):
        fn()
    synchronize(device)
    spent = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            fn()
            end.record()
            end.synchronize()
            spent.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            fn()
            spent.append(1e3 * (time.perf_counter() - began))
    return spent


def seconds_per_call(fn: Callable[[], object], repeats: int, warmup: int, device: torch.device) -> float:
    """Mean over calls in a row without waiting between them, as a training loop runs."""
    for _ in range(warmup):
        fn()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        fn()
    synchronize(device)
    return (time.perf_counter() - began) / repeats


def median_and_p99(values: list[float]) -> tuple[float, float]:
    """Median and 99th percentile (of few values: the largest)."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]


def host_syncs(fn: Callable[[], object]) -> dict[str, int]:
    """``file:line`` -> how often one call of ``fn`` makes the host wait for the GPU."""
    fn()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            fn()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing" in str(w.message)]
    return dict(Counter(places).most_common())


def profile(fn: Callable[[], object], top: int = 15) -> dict[str, Any]:
    """Kernel launches, GPU busy share and the longest kernels of one call of ``fn``."""
    fn()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        began = time.perf_counter()
        fn()
        torch.cuda.synchronize()
        wall_ms = 1e3 * (time.perf_counter() - began)
    events = recorded.key_averages()
    on_gpu = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [e for e in on_gpu if not e.is_user_annotation]
    kernels.sort(key=lambda e: e.self_device_time_total, reverse=True)
    return {
        "launches": sum(e.count for e in events if e.key in LAUNCHES),
        "gpu_ms": sum(e.self_device_time_total for e in kernels) / 1e3,
        "wall_ms_profiled": wall_ms,
        "kernels": [
            {"name": e.key[:100], "ms": e.self_device_time_total / 1e3, "count": e.count}
            for e in kernels[:top]
        ],
    }


def captured(fn: Callable[[], object]) -> Callable[[], None]:
    """``fn`` as the replay of one CUDA graph; its tensors stay where they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            fn()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph.replay
