"""How often the model's thread gives the interpreter's lock away, and how long its copies take.

    OMP_NUM_THREADS=1 python benchmarks/serve/calls.py [--rows 1 16 32] [--run_ms 60] [--seconds 5]

Closed-loop clients (threads, two for each row of a run) ask an engine whose policy has graphs that only take
time (2 x 224 images, a tiny policy), with the rows of a run joined first and not. Counted are entries into
``PyEval_SaveThread`` by the model's thread, of a run and of all that it does: a small library stands before
it (gcc, and a Python with a shared library), and the program starts itself again with that. On a GPU
one more waits for the answer. Then, with nobody beside, microseconds of what a run of so many rows does
before and after its graph, and of one copy of all its tensors to where the graph reads them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from vla_core.graphs import GraphedModel, GraphedPolicy
from vla_core.rows import Prepared, Row
from vla_core.testing import make_observation, make_spec, tiny_policy
from vla_serve.engine.engine import Engine
from vla_serve.server_cli import SWITCH_S

COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
static long given; static pthread_t who; static int on;
void *PyEval_SaveThread(void) {
    static void *(*real)(void);
    if (!real) real = (void *(*)(void))dlsym(RTLD_NEXT, "PyEval_SaveThread");
    if (on && pthread_equal(who, pthread_self())) given++;
    return real();
}
void count_this_thread(void) { who = pthread_self(); given = 0; on = 1; }
long times_given(void) { return given; }
"""


class Joined(GraphedPolicy):
    """Takes the rows of a run joined."""

    def predict_rows(self, parts: Sequence[Prepared], steps: int | None = None) -> torch.Tensor:
        """Join, then predict."""
        return self.predict(Prepared.join(parts), steps)


def graphed(kind: type[GraphedPolicy], run_s: float, device: str) -> GraphedPolicy:
    """A policy whose graphs take ``run_s`` and answer what their capture did; on a GPU they are real ones."""
    torch.manual_seed(0)
    policy = tiny_policy(make_spec(2, height=224, width=224, horizon=16)).eval()
    if device != "cpu":
        return kind(policy.to(device))

    def capture(run: Callable[[], torch.Tensor], pool: Any) -> tuple[Callable[[], None], torch.Tensor]:
        out = run()
        return partial(time.sleep, run_s) if run_s else lambda: None, out

    return kind(policy, GraphedModel(policy.model, capture=capture))


def seen(policy: GraphedPolicy, count: int) -> list[Any]:
    """Observations for it."""
    (spec,) = policy.specs.values()
    return [make_observation(spec, i) for i in range(count)]


def under_load(kind: type[GraphedPolicy], rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Locks given a run, while clients ask."""
    counter = ctypes.PyDLL(os.environ["LD_PRELOAD"])
    counter.times_given.restype = ctypes.c_long
    policy = graphed(kind, args.run_ms / 1000, args.device)
    engine = Engine(policy, max_batch=rows)
    engine.start()
    observations = seen(policy, 2 * rows)
    runs: list[tuple[int, float, int]] = []
    run = engine._runner.run

    def counted(tickets: list[Any]) -> Any:
        if not runs:
            counter.count_this_thread()
        before, start = counter.times_given(), time.monotonic()
        outcome = run(tickets)
        runs.append((len(tickets), time.monotonic() - start, counter.times_given() - before))
        return outcome

    engine._runner.run = counted
    end = time.monotonic() + args.seconds

    def client(number: int) -> None:
        seed = 0
        while time.monotonic() < end:
            engine.submit(str(number), partial(Row, observations[number], seed)).result(60)
            seed += 1

    clients = [threading.Thread(target=client, args=(i,)) for i in range(2 * rows)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    total = counter.times_given()
    engine.close()
    assert total, "nothing counted: this Python has no shared library"
    full = [one for one in runs if one[0] == rows] or runs
    return {
        "runs": len(runs),
        "full": len(full),
        "given_in_a_full_run": statistics.median(given for _, _, given in full),
        "given_by_the_thread_a_run": round(total / len(runs), 1),
        "full_run_ms": round(1000 * statistics.median(took for _, took, _ in full), 2),
    }


def alone(kind: type[GraphedPolicy], rows: int, device: str) -> dict[str, float]:
    """Microseconds of a run with nobody beside it."""
    policy = graphed(kind, 0.0, device)
    parts = [policy.prepare([Row(one, i)]) for i, one in enumerate(seen(policy, rows))]
    report = {"run_us": _median_us(lambda: policy.predict_rows(parts))}
    (graph,) = policy.graphs._graphs.values()
    if graph is not None and kind is GraphedPolicy:
        sources = graph.places.sources(parts)
        with torch.inference_mode():
            report["copy_us"] = _median_us(lambda: torch._foreach_copy_(graph.places.all, sources))
        report["tensors"] = len(sources)
    return report


def _median_us(run: Callable[[], object], times: int = 300) -> float:
    took = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return round(1e6 * statistics.median(took), 1)


def main() -> None:
    """Print a line of JSON for each number of rows and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--run_ms", type=float, default=60.0, help="of the graphs, on a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    if "LD_PRELOAD" not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "counter.so")
            command = ["gcc", "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", str(library), "-ldl"]
            subprocess.run(command, input=COUNTER.encode(), check=True)
            again = subprocess.run(
                [sys.executable, *sys.argv], env={**os.environ, "LD_PRELOAD": str(library)}
            )
        sys.exit(again.returncode)
    sys.setswitchinterval(SWITCH_S)  # as the program does
    torch.set_num_threads(1)
    for rows in args.rows:
        for name, kind in (("joined", Joined), ("rows", GraphedPolicy)):
            report = {**under_load(kind, rows, args), **alone(kind, rows, args.device)}
            print(json.dumps({"rows": rows, "way": name, **report}), flush=True)


if __name__ == "__main__":
    main()
