"""Memory over epochs and the time to the first batch, of this project's loader.

    python benchmarks/data/epoch.py memory [--workers 0 1 2] [--epochs 3]
    python benchmarks/data/epoch.py first [--episodes 1000]

``memory`` reads every sample of a data set (2 cameras 256 x 256, h264 GOP 10) once an epoch in batches of 16
and prints the proportional set size of the process and its workers (shared pages count once) along the way.
``first`` opens a data set in a process of its own, and stops at the first batch of 16, imports apart:
with many episodes in one file a camera, and with a file an episode; the first time (every video is scanned),
and again (the scan is kept).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from vla_data import Mixture
from vla_train.dataloading.recycling import Recycled

BATCH = 16


def memory(workers: list[int], epochs: int) -> None:
    """MB after each third of each epoch."""
    from _ours import Ours, begin, pss, stack
    from _synthetic import Shape, write

    print("| workers | " + " | ".join(f"epoch {e + 1}" for e in range(epochs)) + " |")
    print("|---" * (epochs + 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "set", Shape(2, 256, 256, "h264", 10, 10, 60))
        for count in workers:
            data = Ours(str(Path(folder) / "set"), 1)
            order = Mixture([len(data)])
            steps = len(data) // BATCH
            batches = [[order.locate(BATCH * b + i)[1] for i in range(BATCH)] for b in range(epochs * steps)]
            loader = DataLoader(
                data,
                batch_sampler=batches,
                num_workers=count,
                worker_init_fn=begin,
                collate_fn=Recycled(stack),
            )
            seen: list[list[str]] = [[] for _ in range(epochs)]
            for step, _ in enumerate(loader):
                if step % steps in (steps // 3, 2 * steps // 3, steps - 1):
                    seen[step // steps].append(f"{pss():.0f}")
            print(f"| {count} | " + " | ".join(", ".join(row) for row in seen) + " |", flush=True)


def first(episodes: int) -> None:
    """Seconds from the start of a process to its first batch."""
    from _synthetic import Shape, write

    print("| files a camera | workers | first time, s (CPU) | again, s (CPU) | importing, s (CPU) |")
    print("|---|---|---|---|---|")
    for apart in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "set"
            write(root, Shape(2, 96, 96, "h264", 2, episodes, 10, apart))
            for workers in (0, 2):
                shown = []
                for where in ("new", "new"):
                    kept = {**os.environ, "XDG_CACHE_HOME": str(Path(folder) / f"{where}{workers}")}
                    command = [sys.executable, __file__, "one", str(root), str(workers)]
                    run = subprocess.run(command, env=kept, check=True, capture_output=True, text=True)
                    shown.append(run.stdout.strip().split("|"))
                files = episodes if apart else 1
                print(f"| {files} | {workers} | {shown[0][0]} | {shown[1][0]} | {shown[1][1]} |", flush=True)


def one(root: str, workers: int) -> None:
    """The process of ``first``."""
    from _ours import Ours, begin, stack

    imported = _age()
    torch.set_num_threads(1)
    data = Ours(root, 1)
    order = Mixture([len(data)])
    batches = [[order.locate(BATCH * b + i)[1] for i in range(BATCH)] for b in range(8)]
    next(
        iter(
            DataLoader(
                data,
                batch_sampler=batches,
                num_workers=workers,
                worker_init_fn=begin,
                collate_fn=Recycled(stack),
            )
        )
    )
    now = _age()
    print(f"{now[0] - imported[0]:.2f} ({now[1] - imported[1]:.2f})|{imported[0]:.2f} ({imported[1]:.2f})")


def _age() -> tuple[float, float]:
    """Seconds since this process began, and of its CPU time."""
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return up - began / os.sysconf("SC_CLK_TCK"), time.process_time()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["memory", "first", "one"])
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "memory":
        memory(args.workers, args.epochs)
    elif args.what == "first":
        first(args.episodes)
    else:
        one(args.rest[0], int(args.rest[1]))


if __name__ == "__main__":
    main()
