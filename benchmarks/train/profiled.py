"""``vla-train`` with some steps of the first rank recorded, and where their time goes as a table.

Started by ``speed.py --profile``; alone: ``PROFILE_OUT=p.json PROFILE_FROM=30 python profiled.py ...``.
Step ``PROFILE_FROM`` and the two after it are recorded by ``torch.profiler``; those before run as ever. The
file holds, in ms a step: compute (time in which a kernel that is no exchange runs), exchange (NCCL kernels),
overlapped (both at once), exposed (exchange alone), idle (neither); the forward, backward and update parts as
the computing stream sees them; what the host waited for; and the kernels that take most.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STEPS, TOP = 3, 15
EXCHANGE = ("ncclDevKernel", "ncclKernel", "gloo:")
HOST_WAITS = ("Synchronize", "cudaMalloc", "cudaFree")
Span = tuple[int, int]


def union(spans: Iterable[Span]) -> list[Span]:
    """Spans that overlap as one, in order."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def length(spans: Iterable[Span]) -> int:
    """Of spans that do not overlap."""
    return sum(end - start for start, end in spans)


def summary(kernels: list[tuple[str, int, int]], steps: int) -> dict[str, Any]:
    """Where the time of (name, start, end) in ns goes, in ms a step."""
    if not kernels:
        return {}
    exchange = union((s, e) for name, s, e in kernels if name.startswith(EXCHANGE))
    compute = union((s, e) for name, s, e in kernels if not name.startswith(EXCHANGE))
    both = union([*exchange, *compute])
    whole = max(e for _, _, e in kernels) - min(s for _, s, _ in kernels)
    times, counts = defaultdict[str, int](int), defaultdict[str, int](int)
    for name, start, end in kernels:
        times[name] += end - start
        counts[name] += 1
    gaps = [after[0] - before[1] for before, after in pairwise(both)]
    overlapped = length(exchange) + length(compute) - length(both)
    parts = {
        "step": whole, "compute": length(compute), "exchange": length(exchange), "overlapped": overlapped,
        "exposed": length(exchange) - overlapped, "idle": whole - length(both),
        "idle in gaps above 0.1 ms": sum(gap for gap in gaps if gap > 100_000),
    }  # fmt: skip
    top = sorted(times, key=times.__getitem__, reverse=True)[:TOP]
    return {
        "ms": {key: value / 1e6 / steps for key, value in parts.items()},
        "kernels": [
            {"name": name[:120], "ms": times[name] / 1e6 / steps, "count": counts[name] / steps}
            for name in top
        ],
        "kernel_count": len(kernels) / steps,
    }


def markdown(found: dict[str, Any]) -> str:
    """The same as a table."""
    lines = ["| ms a step | |", "|---|---|"]
    for group in ("ms", "parts_ms", "host_waits_ms"):
        lines += [f"| {name} | {value:.1f} |" for name, value in found.get(group, {}).items()]
    lines += ["", "| kernel | ms a step | calls |", "|---|---|---|"]
    lines += [f"| `{k['name'][:90]}` | {k['ms']:.1f} | {k['count']:.0f} |" for k in found.get("kernels", [])]
    return "\n".join(lines)


def read(recorded: Any, cuda: bool) -> tuple[list[tuple[str, int, int]], dict[str, float]]:
    """Kernels of the device (without one: operations of the CPU), and what the host waited for, ms a step."""
    kernels, waits = [], defaultdict[str, float](float)
    device = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    for event in recorded.profiler.kineto_results.events():
        name, start = event.name(), event.start_ns()
        if event.device_type() == device:
            # What is marked in the code spans kernels that are listed as well.
            if not event.is_user_annotation() and not name.startswith(("nccl:", "FSDP::")):
                kernels.append((name, start, start + event.duration_ns()))
        elif any(word in name for word in HOST_WAITS):
            waits[name] += event.duration_ns() / 1e6 / STEPS
    return kernels, dict(waits)


class Parts:
    """Times of an engine's methods, by events of the stream that computes."""

    def __init__(self, engine: Any) -> None:
        self.cuda = engine.device.type == "cuda"
        self.marks: list[tuple[str, Any, Any]] = []
        for name in ("forward", "backward", "update"):
            setattr(engine, name, self._timed(name, getattr(engine, name)))

    def _mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self._mark()
            out = call(*args, **kwargs)
            self.marks.append((name, before, self._mark()))
            return out

        return timed

    def read(self) -> dict[str, float]:
        """In ms a step."""
        out = defaultdict[str, float](float)
        for name, before, after in self.marks:
            ms = before.elapsed_time(after) if self.cuda else 1e3 * (after - before)
            out[name] += ms / STEPS
        return dict(out)


def record(first: int, out: Path) -> None:
    """Have the trainer record steps ``first`` and on, on the first rank."""
    from vla_train import trainer

    step = trainer.Trainer._step
    state: dict[str, Any] = {}

    def recorded(self: Any, number: int, batches: Any, meter: Any) -> Any:
        if not self.engine.is_main or not first <= number < first + STEPS:
            return step(self, number, batches, meter)
        cuda = self.device.type == "cuda"
        if number == first:
            state["parts"] = Parts(self.engine)
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
            state["profile"] = profile(activities=kinds)
            state["profile"].__enter__()
        result = step(self, number, batches, meter)
        if number == first + STEPS - 1:
            if cuda:
                torch.cuda.synchronize()
            state["profile"].__exit__(None, None, None)
            kernels, waits = read(state["profile"], cuda)
            found = {**summary(kernels, STEPS), "parts_ms": state["parts"].read(), "host_waits_ms": waits}
            partial = out.with_suffix(".partial")
            partial.write_text(json.dumps(found, indent=1))
            partial.replace(out)
        return result

    trainer.Trainer._step = recorded


if __name__ == "__main__":
    from vla_train.cli import main

    record(int(os.environ["PROFILE_FROM"]), Path(os.environ["PROFILE_OUT"]))
    sys.exit(main())
