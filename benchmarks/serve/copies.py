"""Which copies a chunk makes on the device, and who asks for them, at several batch sizes.

    python benchmarks/serve/copies.py --rows 1 8 32                    one GPU, eager, about a minute
    python benchmarks/serve/copies.py --rows 1 8 32 --compile blocks   names of kernels say what is fused
    python benchmarks/serve/copies.py --size tiny --rows 1 4           the same path on a CPU

The kernels are those that a graph replays; run eagerly, each of them belongs to an operator and a line of
Python. A copy is known by its name: copies, concatenations, padding, fills, moves. Printed are time and
number of them in one chunk, by caller, longest first, and of all kernels. Copies that are made at 32 rows and
not at one show by their time a row.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from typing import Any

from latency import build, observations

COPIES = re.compile(
    r"copy|clone|contiguous|cat(?![a-z])|CatArray|constant_pad|[Mm]emcpy|[Mm]emset|fill|repeat"
)
OURS = re.compile(r"vla_[a-z]+/|transformers/")


def kernels(event: Any, device: str) -> list[tuple[str, float]]:
    """(name, microseconds) of what an operator itself ran on the device."""
    if device != "cpu":
        return [(kernel.name, kernel.duration) for kernel in event.kernels]
    return [(event.name, event.self_cpu_time_total)] if event.name.startswith("aten::") else []


def operators(event: Any) -> str:
    """The operators that an event is inside of, outermost first."""
    names: list[str] = []
    while event is not None:
        if event.name.startswith(("aten::", "triton_", "Torch-Compiled")):
            names.append(event.name.removeprefix("aten::"))
        event = event.cpu_parent
    return " > ".join(reversed(names[:4]))


def line(event: Any) -> str:
    """The line of Python that an event comes from; empty where it is not known."""
    while event is not None:
        for frame in event.stack or ():
            if (ours := OURS.search(frame)) is not None:
                return str(frame)[ours.start() :]
        event = event.cpu_parent
    return ""


def table(policy: Any, rows: int, args: argparse.Namespace) -> None:
    """Print the copies of one chunk of ``rows`` rows."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from vla_core.rows import Row

    prepared = policy.prepare([Row(seen, i) for i, seen in enumerate(observations(policy, rows))])
    for _ in range(3):
        policy.predict(prepared)
    activities = [ProfilerActivity.CPU]
    if args.device != "cpu":
        torch.cuda.synchronize()
        activities.append(ProfilerActivity.CUDA)
    stacks = torch._C._profiler._ExperimentalConfig(verbose=True)  # without it events have no lines
    with profile(
        activities=activities,
        with_stack=True,
        record_shapes=True,
        acc_events=True,
        experimental_config=stacks,
    ) as seen:
        policy.predict(prepared)
    total, count = 0.0, 0
    found: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for event in seen.events():
        for name, took in kernels(event, args.device):
            total, count = total + took, count + 1
            if COPIES.search(name) or COPIES.search(event.name):
                shapes = str([shape for shape in event.input_shapes or () if shape][:2])
                found[line(event), operators(event), shapes, name[:60]].append(took)
    copied = sum(sum(times) for times in found.values())
    number = sum(len(times) for times in found.values())
    print(f"\n## {rows} rows: {count} kernels, {total / 1000:.2f} ms; of which copies {number}, ", end="")
    print(f"{copied / 1000:.3f} ms, {copied / rows:.1f} us a row\n")
    print("| us | number | line | operators | shapes | kernel |\n|---|---|---|---|---|---|")
    for (where, how, shapes, name), times in sorted(found.items(), key=lambda item: -sum(item[1]))[
        : args.top
    ]:
        print(f"| {sum(times):.0f} | {len(times)} | {where} | {how} | {shapes} | {name} |", flush=True)


def main() -> None:
    """Print a table for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--framework", default="QwenGR00T")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", help="default: cuda at size full, cpu at size tiny")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--compile", choices=("off", "blocks"), default="off")
    parser.add_argument("--top", type=int, default=25, help="lines of a table")
    args = parser.parse_args()
    args.device = args.device or ("cuda" if args.size == "full" else "cpu")
    from vla_core.graphs import compile_blocks
    from vla_core.packing import pack

    dtype = "float32" if args.device == "cpu" else "bfloat16"
    policy = build(args.framework, args.size, args.device, dtype, None)
    pack(policy.model)  # as loading does
    if args.compile == "blocks":
        compile_blocks(policy.model)
    for rows in args.rows:
        table(policy, rows, args)


if __name__ == "__main__":
    main()
