"""What a request costs beside the model: CPU time of the server's process, and latency at one client.

    OMP_NUM_THREADS=1 python benchmarks/serve/overhead.py [--policy tiny] [--clients 1 32] [--seconds 5]
    OMP_NUM_THREADS=1 python benchmarks/serve/overhead.py --loops asyncio uvloop --run_ms 0 --row_ms 0
    OMP_NUM_THREADS=1 python benchmarks/serve/overhead.py --idle_poll off kernel spin --run_ms 11 --row_ms 0

The model is a clock that sleeps (``--run_ms``, ``--row_ms``): of a policy that prepares nothing, with 2 x 224
RAW images, or (``--policy tiny``) of a real one of a small backbone and its small images, whose rows pass the
same pipeline, collator and copies as those of a large one. Server and clients are processes of their own.
With ``--loops``, a server with each event loop, asked in turn by one client: CPU time of server and client a
request, and times that the server's threads went to sleep. ``asyncio-pollset`` is asyncio's with gRPC's older
way of waiting for the network (:data:`POLLSET`), of the server alone. With ``--idle_poll`` the same with idle
cores that halt, that the kernel lets poll, or that threads of lowest priority keep busy: ``vla-serve
--idle_poll`` chooses of the latter two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from runs import Runs
from vla_serve.server_cli import SWITCH_S

LOOPS = ("asyncio", "asyncio-pollset", "uvloop")
POLLSET = {"GRPC_EXPERIMENTS": "-event_engine_listener,-event_engine_client"}
"""The environment in which the thread that waits for gRPC's events reads the network, and no other one."""


def slowed(policy: Any, run_s: float, row_s: float) -> Any:
    """A policy with graphs that only take time: their answers are those of the warm-up.

    What goes to a GPU and comes back is copied as there, to memory of a CPU.
    """
    from vla_core.graphs import GraphedModel, GraphedPolicy

    def capture(run: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
        out = run()
        return partial(time.sleep, run_s + row_s * len(out)), out

    return GraphedPolicy(policy, GraphedModel(policy.model, capture=capture))


def build(args: argparse.Namespace) -> Any:
    """The policy."""
    from vla_core.testing import make_spec

    spec = make_spec(2, height=224, width=224, horizon=16)
    run_s, row_s = args.run_ms / 1000, args.row_ms / 1000
    if args.policy == "timed":
        from vla_serve.testing import TimedPolicy

        return TimedPolicy(spec, run_s, row_s)
    import torch
    from vla_train.testing import trace as smoke
    from vla_train.testing.sizes import framework_tree

    torch.manual_seed(0)
    policy = smoke.build(framework_tree("QwenGR00T", "tiny", []), "tiny", "cpu").eval()
    return slowed(policy, run_s, row_s)


def slept() -> int:
    """How often threads of this process have waited for something."""
    count = 0
    for status in Path("/proc/self/task").glob("*/status"):
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        count += int(lines["voluntary_ctxt_switches"])
    return count


def serve(pipe: Connection, args: argparse.Namespace, loop: str | None = None) -> None:
    """The server, which says between two words how much CPU time it used, how often it slept, what it ran."""
    from vla_core.heap import settle_heap
    from vla_serve import PolicyServer
    from vla_serve.host.memory import keep_freed_memory

    if loop == "uvloop":
        import uvloop

        asyncio.new_event_loop = uvloop.new_event_loop

    keep_freed_memory()  # as the program does
    sys.setswitchinterval(args.switch_ms / 1000)
    policy = build(args)
    with PolicyServer(policy, max_batch=args.max_batch) as server:
        runs = Runs(server.engine)
        settle_heap()
        pipe.send(server.address)
        while pipe.recv() == "start":
            runs.clear()
            cpu, sleeps = time.process_time(), slept()
            pipe.recv()
            pipe.send((time.process_time() - cpu, slept() - sleeps, runs.summary()))


def drive(pipe: Connection, address: str, clients: int, seconds: float) -> None:
    """The clients."""
    from vla_core.testing import make_observation
    from vla_serve import PolicyClient
    from vla_serve.probing.load import closed_loop

    with PolicyClient(address) as client:
        seen = [make_observation(client.contract, i) for i in range(clients)]
        parts = []
        for i in range(60):
            client.predict(seen[0], seed=i)
            parts.append(client.timings)
    parts = parts[10:]
    beside = sorted(t.round_trip_ms - t.model_ms for t in parts)
    server = sorted(t.server_ms - t.model_ms for t in parts)
    pipe.send("start")
    pipe.recv()
    outcome = closed_loop(address, seen, seconds, timeout_s=60)
    pipe.send(
        {
            "answers": len(outcome.latencies_ms),
            "chunks_per_s": round(outcome.rate, 1),
            "p50_ms": round(outcome.percentile(50), 2),
            "p99_ms": round(outcome.percentile(99), 2),
            "beside_model_ms": round(beside[len(beside) // 2], 2),
            "server_beside_model_ms": round(server[len(server) // 2], 2),
            "other": dict(outcome.other),
        }
    )


def idle_cores(how: str) -> AbstractContextManager[None]:
    """What idle cores do within a block."""
    from vla_serve.host.idle_poll import polled_by_kernel, spinning

    ways = {"off": nullcontext, "kernel": polled_by_kernel, "spin": lambda: spinning(os.sched_getaffinity(0))}
    return ways[how]()


def compare(context: Any, args: argparse.Namespace) -> None:
    """A server for each event loop, in turn ``args.rounds`` times; a line of JSON for each turn."""
    from vla_core.testing import make_observation
    from vla_serve import PolicyClient

    pipes, servers, clients = {}, [], {}
    for loop in args.loops:
        pipes[loop], theirs = context.Pipe()
        servers.append(context.Process(target=serve, args=(theirs, args, loop)))
        # Read when gRPC is imported, which in this process it has been.
        with patch.dict(os.environ, POLLSET if loop == "asyncio-pollset" else {}):
            servers[-1].start()
        clients[loop] = PolicyClient(pipes[loop].recv())
        clients[loop].open()
    seen = make_observation(clients[args.loops[0]].contract)
    turns = [(loop, how) for loop in args.loops for how in args.idle_poll]
    for number in range(args.rounds + 1):
        for loop, how in turns if number % 2 else turns[::-1]:
            with idle_cores(how):
                report = turn(clients[loop], pipes[loop], seen, args.requests)
            if number:  # the first turn warms up
                print(json.dumps({"round": number, "loop": loop, "idle_poll": how, **report}), flush=True)
    for loop, server in zip(args.loops, servers, strict=True):
        clients[loop].close()
        pipes[loop].send("end")
        server.join()


def turn(client: Any, pipe: Connection, seen: Any, requests: int) -> dict[str, float]:
    """Medians of some requests, one after the other."""
    parts = []
    pipe.send("start")
    cpu = time.process_time()
    for seed in range(requests):
        client.predict(seen, seed=seed)
        parts.append(client.timings)
    cpu = time.process_time() - cpu
    pipe.send("stop")
    server_s, sleeps, _ = pipe.recv()
    beside = sorted(t.round_trip_ms - t.model_ms for t in parts)
    return {
        "beside_model_ms": round(beside[len(beside) // 2], 3),
        "beside_model_p99_ms": round(beside[int(0.99 * len(beside))], 3),
        "server_beside_model_ms": round(statistics.median(t.server_ms - t.model_ms for t in parts), 3),
        "queue_ms": round(statistics.median(t.queue_ms for t in parts), 3),
        "server_cpu_us": round(1e6 * server_s / requests),
        "client_cpu_us": round(1e6 * cpu / requests),
        "server_sleeps": round(sleeps / requests, 1),
    }


def main() -> None:
    """Print a line of JSON for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--policy", choices=("timed", "tiny"), default="timed")
    parser.add_argument("--run_ms", type=float, default=10.0)
    parser.add_argument("--row_ms", type=float, default=1.0)
    parser.add_argument("--max_batch", type=int, default=32)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--switch_ms", type=float, default=1000 * SWITCH_S, help="of threads")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--loops", choices=LOOPS, nargs="+", help="compare event loops")
    parser.add_argument(
        "--idle_poll", choices=("off", "kernel", "spin"), nargs="+", help="compare idle cores"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of a comparison")
    parser.add_argument("--requests", type=int, default=500, help="of each of its turns")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    if args.loops or args.idle_poll:
        args.loops, args.idle_poll = args.loops or ["asyncio"], args.idle_poll or ["off"]
        compare(context, args)
        return
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, args))
    server.start()
    address = ours.recv()
    for count in args.clients:
        mine, other = context.Pipe()
        clients = context.Process(target=drive, args=(other, address, count, args.seconds))
        clients.start()
        mine.recv()
        ours.send("start")
        mine.send("go")
        report = mine.recv()
        ours.send("stop")
        cpu_s, _, report["runs"] = ours.recv()
        clients.join()
        report["server_cpu_ms_per_answer"] = round(1000 * cpu_s / report["answers"], 2)
        print(json.dumps({"policy": args.policy, "clients": count, **report}), flush=True)
    ours.send("end")
    server.join()


if __name__ == "__main__":
    main()
