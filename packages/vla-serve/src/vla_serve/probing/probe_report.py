"""What ``vla-serve probe`` measured, in words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vla_serve.probing.probe import PARTS, Load


def latency_lines(found: Load, control_hz: float, horizon: int) -> Iterator[str]:
    """Round trip and its parts, batches, rate, and what an answer takes in control steps."""
    yield f"{'ms':14}{'p50':>9}{'p99':>9}{'max':>9}"
    rows = {part.replace("_", " "): found.of(part) for part in PARTS}
    rows["beyond server"] = [a - b for a, b in zip(rows["round trip"], rows["server"], strict=True)]
    for name, values in rows.items():
        p50, p99 = np.percentile(values, [50, 99])
        yield f"{name:14}{p50:9.2f}{p99:9.2f}{max(values):9.2f}"
    for name, words in (("batch", "rows of a batch"), ("queue_depth", "requests that waited before")):
        values = found.of(name)
        yield f"{words}: {np.mean(values):.2f} on average, {max(values):.0f} at most"
    rate = len(found.timings) / found.seconds
    yield f"{rate:.1f} chunks/s; {found.refused} requests were refused at first"
    steps = float(np.median(rows["round trip"])) * control_hz / 1000
    yield (
        f"an answer takes {steps:.2f} control steps, a chunk lasts {horizon}"
        + ("" if steps < horizon else ": the robot waits for every chunk")
    )  # fmt: skip


def repeats_line(worst: float, tolerance: float) -> str:
    """How far apart equal requests were answered."""
    if worst == 0:
        return "equal requests: answered alike, bit by bit, in one session and in two"
    if worst <= tolerance:
        return f"equal requests: answered {worst:.3g} apart, within --tolerance {tolerance:g}"
    return (
        f"equal requests: ANSWERED {worst:.3g} APART. Rows of other clients may have shared their batches "
        "(vla-serve --deterministic makes that no difference; --tolerance allows for it); if nobody else "
        "asks, the policy draws numbers of its own"
    )
