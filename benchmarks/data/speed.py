"""Batches of synthetic video: this project's loader beside lerobot's, with and without ``vla-data cache``.

    python benchmarks/data/speed.py [--cases a b c] [--rounds 3] [--samples 96] [--out speed.json]
    python benchmarks/data/speed.py --cases a b c --workers 4 8 16 --rounds 2 --samples 2048 --settle 4

Random batches of 16 through PyTorch's DataLoader, the same samples for all but the rows of runs, whose
order keeps 8 neighbouring samples together (``datasets.neighbours``). The readers take turns, and the
median over ``--rounds`` counts. CPU time is that of the process and its workers together; memory is their
proportional set size (shared pages count once) after the last batch. Rows say how many times lerobot's
faster reader is outdone; where lerobot is not installed, its rows and these ratios are left out.

``--settle`` batches a worker are read before the clock of samples/s starts: with many workers their start
would be most of a short pass. CPU time always counts all.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from _ours import Ours, begin, pss, stack
from _synthetic import Shape, write
from _theirs import close_decoders, theirs
from torch.utils.data import DataLoader, Dataset
from vla_data import Mixture
from vla_data.cache import CacheConfig, build_cache
from vla_train.dataloading.recycling import Recycled

BATCH, CACHED, RUN = 16, 224, 8


@dataclass(frozen=True)
class Case:
    """A data set and how many past frames a sample has; the goals are ratios to lerobot's faster reader."""

    what: str
    shape: Shape
    history: int
    goal: float


CASES = {
    "a": Case("2 cameras 256 x 256, h264 GOP 2", Shape(2, 256, 256, "h264", 2, 10, 60), 1, 4.0),
    "a10": Case("as a, GOP 10", Shape(2, 256, 256, "h264", 10, 10, 60), 1, 4.0),
    "b": Case("3 cameras 480 x 640, AV1 GOP 2", Shape(3, 480, 640, "av1", 2, 4, 50), 1, 2.0),
    "c": Case("as a, 4 frames", Shape(2, 256, 256, "h264", 2, 10, 60), 4, 10.0),
    "c10": Case("as a10, 4 frames", Shape(2, 256, 256, "h264", 10, 10, 60), 4, 10.0),
}
CACHE_GOAL = 10.0
NEIGHBOURS, CACHE = f"ours, neighbours: {RUN}", "ours, cache"
THEIRS_ALIKE = f"lerobot, torchcodec, runs of {RUN}"
TRANSPORT = "ours, PyTorch's transport"
READERS = ("ours", NEIGHBOURS, CACHE, TRANSPORT, "lerobot, torchcodec", THEIRS_ALIKE, "lerobot, pyav")


@dataclass
class Measured:
    """Of one pass."""

    rate: float
    cpu_ms: float
    first_s: float
    memory_mb: float


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure(
    make: Callable[[], Dataset[Any]], indices: Sequence[int], workers: int, reader: str, settle: int
) -> Measured:
    """Open the data set and read ``indices`` in batches; the first ``settle`` of them before the clock."""
    started, cpu = time.perf_counter(), 0.0
    data = make()
    batches = [list(indices[i : i + BATCH]) for i in range(0, len(indices), BATCH)]
    cpu = _cpu()
    init = begin if reader.startswith("ours") else None
    collate = Recycled(stack) if init and reader != TRANSPORT else None
    close_decoders()
    loader = DataLoader(
        data, batch_sampler=batches, num_workers=workers, worker_init_fn=init, collate_fn=collate
    )
    iterator = iter(loader)
    begun, before = time.perf_counter(), 0
    next(iterator)
    first = time.perf_counter() - started
    for number in range(1, len(batches)):
        if number == settle:
            begun, before = time.perf_counter(), number * BATCH
        next(iterator)
    seconds = time.perf_counter() - begun
    memory = pss()
    del iterator, loader  # joins the workers, whose time counts from then on
    return Measured((len(indices) - before) / seconds, 1000 * (_cpu() - cpu) / len(indices), first, memory)


def run_case(case: Case, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Every reader at every number of workers, in turns; ``folder`` keeps one data set a shape."""
    samples = args.samples
    plain = folder / "_".join(str(number) for number in astuple(case.shape))
    cached, size = plain.with_name(plain.name + "_cached"), min(CACHED, case.shape.height)
    if not plain.exists():
        write(plain, case.shape)
    if CACHE in args.readers and not cached.exists():
        build_cache(plain, cached, CacheConfig(size, size, gop=2))
    path, quick, history = str(plain), str(cached), case.history
    makers: dict[str, Callable[[], Dataset[Any]]] = {
        "ours": lambda: Ours(path, history),
        NEIGHBOURS: lambda: Ours(path, history),
        CACHE: lambda: Ours(quick, history),
        TRANSPORT: lambda: Ours(path, history),
        "lerobot, torchcodec": lambda: theirs(path, history, "torchcodec"),
        THEIRS_ALIKE: lambda: theirs(path, history, "torchcodec"),
        "lerobot, pyav": lambda: theirs(path, history, "pyav"),
    }
    for name in list(makers):
        if name not in args.readers:
            del makers[name]
            continue
        try:
            makers[name]()[20]
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name}: left out, does not load here ({str(error).splitlines()[0]})", flush=True)
            del makers[name]
    size = case.shape.episodes * case.shape.frames
    orders = {
        name: Mixture([size], neighbours=RUN if name in (NEIGHBOURS, THEIRS_ALIKE) else 1) for name in makers
    }
    found: dict[str, list[dict[str, float]]] = {}
    for i in range(args.rounds):
        for count in args.workers:
            for name, make in makers.items():
                indices = [orders[name].locate(i * samples + k)[1] for k in range(samples)]
                settle = min(args.settle * count, samples // BATCH - 1)
                one = measure(make, indices, count, name, settle)
                found.setdefault(f"{name}|{count}", []).append(asdict(one))
    medians = {
        key: {field: statistics.median(one[field] for one in many) for field in many[0]}
        for key, many in found.items()
    }
    return {"what": case.what, "rows": medians}


def table(name: str, case: Case, result: dict[str, Any], workers: Sequence[int]) -> str:
    """Markdown rows of a case: samples/s, ratios of rate and CPU time to lerobot, goal, costs."""
    lines, rows = [], result["rows"]
    for count in workers:
        base = [
            rows[f"lerobot, {b}|{count}"] for b in ("torchcodec", "pyav") if f"lerobot, {b}|{count}" in rows
        ]
        rate = max((r["rate"] for r in base), default=math.nan)
        cpu = min((r["cpu_ms"] for r in base), default=math.nan)
        for reader in READERS:
            row = rows.get(f"{reader}|{count}")
            if row is None:
                continue
            goal = {"ours": f"{case.goal:g}", CACHE: f"{CACHE_GOAL:g}"}.get(reader, "")
            ratios = f"{row['rate']:.0f} | {row['rate'] / rate:.2f} | {cpu / row['cpu_ms']:.2f} | {goal}"
            costs = f"{row['cpu_ms']:.2f} | {row['first_s']:.2f} | {row['memory_mb']:.0f}"
            lines.append(f"| {name} | {count} | {reader} | {ratios} | {costs} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=96, help="of one pass")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settle", type=int, default=0, help="batches a worker before the clock starts")
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=READERS)
    parser.add_argument("--out", type=Path, help="all medians, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| case | workers | reader | samples/s | rate | CPU | goal | CPU ms | first batch s | MB |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.cases:
            results[name] = run_case(CASES[name], Path(folder), args)
            print(table(name, CASES[name], results[name], args.workers), flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
