"""The product's own server and client over loopback: latency, throughput, accuracy and time to ready.

    python benchmarks/serve/latency.py --out latency.json                       one GPU, about 6 minutes
    python benchmarks/serve/latency.py --frameworks QwenGR00T --compile blocks  one case, with compiled blocks
    python benchmarks/serve/latency.py --size tiny                              the same path on a CPU

Random weights of the true shapes (the presets of vla-train at size full: Qwen2.5-VL-3B with the head of the
framework, PI0 with PaliGemma), bf16, 2 x 224 RAW images and state, the preset's denoise steps unless --steps.
The server is a process of its own; the clients share up to --client_processes others, as robots don't share
an interpreter with each other. Beside each case: the model alone (one row from the
host and back), the largest error and the cosine against the same weights in eager fp32 (of normalised actions
of four observations), launches of kernels in one chunk, memory, and seconds from start to ready; the parts of
a lone request beside the model (``parts_ms``, medians: what the server says, and ``outside`` of it: gRPC both
ways and the client); and for each number of clients what the model's thread ran (``runs``: rows of a run,
share of the time, pauses). Threads are settled as ``vla-serve`` does. With --idle_poll a lone client is timed
once more at the end while idle cores poll (``polled``), beside the first time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from runs import Runs

CLIENTS = (1, 8, 16, 32)


def build(name: str, size: str, device: str, dtype: str, steps: int | None) -> Any:
    """The preset with random weights of seed 0; with ``dtype`` float32 the same ones."""
    import torch
    from vla_train.testing import trace as smoke
    from vla_train.testing.sizes import framework_tree

    torch.manual_seed(0)
    words = ["vlm.dtype=float32"] + ([] if steps is None else [f"head.steps={steps}"])
    policy = smoke.build(framework_tree(name, size, words), size, device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            # Outputs and modulations start at zero, which would make every comparison of answers true.
            if parameter.ndim >= 2 and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)
    return policy.to(dtype=getattr(torch, dtype))  # as from_pretrained does


def observations(policy: Any, count: int) -> list[Any]:
    """Noise for pictures, which no encoder finds easy."""
    from vla_core.testing import make_observation

    (spec,) = policy.specs.values()
    return [make_observation(spec, i) for i in range(count)]


def serve(pipe: Connection, name: str, args: argparse.Namespace) -> None:
    """Build, compare with fp32, serve; in a process of its own."""
    import torch
    from vla_core.graphs import GraphedPolicy, compile_blocks
    from vla_core.heap import settle_heap
    from vla_core.packing import pack
    from vla_core.rows import Row
    from vla_serve import PolicyServer
    from vla_serve.host.idle_poll import idle_poll
    from vla_serve.host.memory import keep_freed_memory
    from vla_serve.loading import CheckpointLoader
    from vla_serve.server_cli import SWITCH_S

    sys.setswitchinterval(SWITCH_S)  # as the program does
    keep_freed_memory()
    cuda = args.device.startswith("cuda")
    report: dict[str, Any] = {"framework": name, "compile": args.compile, "eager": args.eager}
    exact = build(name, args.size, args.device, "float32", args.steps)
    rows = [Row(observation, i) for i, observation in enumerate(observations(exact, 4))]
    with torch.inference_mode():
        expected = exact.predict(exact.prepare(rows))
    report["device"] = torch.cuda.get_device_name() if cuda else "CPU"
    report["parameters"] = sum(p.numel() for p in exact.model.parameters())
    del exact
    began = time.perf_counter()
    policy = build(name, args.size, args.device, "bfloat16" if cuda else "float32", args.steps)
    pack(policy.model)  # as loading does
    if args.fp8:
        from vla_serve.fp8 import round_linears

        report["fp8"] = str(round_linears(policy))
    report["build_s"] = time.perf_counter() - began
    if args.compile == "blocks":
        report["blocks"] = compile_blocks(policy.model)
    served = GraphedPolicy(policy) if cuda and not args.eager else policy
    loader = CheckpointLoader(args.device)
    settled = {"on_thread": loader.on_thread, "on_warm": loader.on_warm}
    with PolicyServer(served, max_batch=args.max_batch, **settled) as server:
        report["ready_s"] = time.perf_counter() - began
        if isinstance(served, GraphedPolicy):
            served.graphs.seal()
            report["graphs"] = served.graphs.count
        desk = server.engine._desk
        report["model_ms"] = {n: 1000 * desk.estimates.seconds(None, n) for n in server.engine._sizes}
        if cuda:
            torch.cuda.empty_cache()
            report["memory_GiB"] = torch.cuda.memory_reserved() / 2**30
        runs = Runs(server.engine)
        settle_heap()  # as the program does, once it is ready
        pipe.send((server.address, report))
        report["runs"] = {}
        while (clients := pipe.recv()) is not None:  # so many have just been served
            report["runs"][clients] = runs.summary()
            runs.clear()
        if args.idle_poll:
            with idle_poll():
                pipe.send("polled")
                pipe.recv()
        # The clients are done; nobody else uses the model now.
        got = torch.cat([served.predict(served.prepare([row])) for row in rows])
        report["max_error"] = float((got - expected).abs().max())
        report["cosine"] = float(torch.cosine_similarity(got.flatten(), expected.flatten(), 0))
        if cuda:
            report["launches"] = launches(lambda: served.predict(served.prepare(rows[:1])))
        pipe.send(report)
        pipe.recv()


def launches(run: Any) -> dict[str, int]:
    """Launches of kernels and graphs, and waits for the GPU, in one chunk."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        run()
    counts = {event.key: event.count for event in seen.key_averages()}
    return {
        "kernels": sum(n for key, n in counts.items() if "LaunchKernel" in key),
        "graphs": counts.get("cudaGraphLaunch", 0),
        "waits": sum(counts.get(f"cuda{what}Synchronize", 0) for what in ("Stream", "Device", "Event")),
    }


PARTS = ("queue_ms", "decode_ms", "prepare_ms", "finish_ms")


def parts_of(seen: list[Any]) -> dict[str, float]:
    """Medians of the parts of ``seen`` timings that are not the model's."""
    columns = {name.removesuffix("_ms"): [getattr(t, name) for t in seen] for name in PARTS}
    columns["outside"] = [t.round_trip_ms - t.server_ms for t in seen]
    columns["rest_of_server"] = [
        t.server_ms - t.model_ms - sum(getattr(t, name) for name in PARTS) for t in seen
    ]
    return {name: round(statistics.median(values), 3) for name, values in columns.items()}


def in_turn(observations: list[Any], processes: int) -> list[list[Any]]:
    """So many groups of clients at most, as even as can be."""
    return [observations[i::processes] for i in range(min(processes, len(observations)))]


def merged(outcomes: list[Any]) -> Any:
    """What came of all clients together."""
    whole = outcomes[0]
    for number, outcome in enumerate(outcomes[1:], 1):
        whole.answered.update({(number, client): n for client, n in outcome.answered.items()})
        whole.latencies_ms += outcome.latencies_ms
        whole.other.update(outcome.other)
    return whole


def alone(address: str, seen: list[Any], seconds: float) -> dict[str, Any]:
    """One client, whose requests follow each other."""
    from vla_serve import PolicyClient

    with PolicyClient(address) as client:
        for i in range(10):
            client.predict(seen[i % 8], seed=i)
        parts = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            client.predict(seen[0], seed=0)
            assert client.timings is not None
            parts.append(client.timings)
    return {
        "lone_ms": statistics.median(t.round_trip_ms for t in parts),
        "lone_p99_ms": float(np.percentile([t.round_trip_ms for t in parts], 99)),
        "beside_model_ms": statistics.median(t.round_trip_ms - t.model_ms for t in parts),
        "parts_ms": parts_of(parts),
    }


def drive(pipe: Connection, address: str, seconds: float, processes: int, polled: bool) -> None:
    """All clients, in processes of their own; says after each number of them how many they were."""
    from vla_core.testing import make_observation
    from vla_serve import PolicyClient
    from vla_serve.probing.load import closed_loop

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context)

    with PolicyClient(address) as client:
        spec = client.contract
    seen = [make_observation(spec, i) for i in range(max(CLIENTS))]
    lone = alone(address, seen, seconds)
    pipe.send(0)  # what was seen until here
    rows: dict[str, Any] = {**lone, "clients": {}}
    loop = partial(closed_loop, address, seconds=seconds, timeout_s=60)
    list(pool.map(abs, range(4 * processes)))  # all have started
    for count in CLIENTS:
        outcome = merged(list(pool.map(loop, in_turn(seen[:count], processes))))
        rows["clients"][count] = {
            "p50_ms": outcome.percentile(50),
            "p99_ms": outcome.percentile(99),
            "chunks_per_s": outcome.rate,
            "other": dict(outcome.other),
        }
        pipe.send(count)
    pool.shutdown()
    pipe.send(None)
    if polled:
        pipe.recv()
        rows["polled"] = alone(address, seen, seconds)
    pipe.send(rows)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One case."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, name, args))
    server.start()
    theirs.close()
    address, _ = ours.recv()
    mine, other = context.Pipe()
    clients = context.Process(
        target=drive, args=(other, address, args.seconds, args.client_processes, args.idle_poll)
    )
    clients.start()
    other.close()
    while (count := mine.recv()) is not None:
        ours.send(count)
    ours.send(None)
    if args.idle_poll:
        mine.send(ours.recv())
    rows = mine.recv()
    clients.join()
    if args.idle_poll:
        ours.send(None)
    report: dict[str, Any] = {**ours.recv(), **rows}
    ours.send(None)
    server.join()
    return report


def markdown(reports: list[dict[str, Any]]) -> str:
    """The table."""
    counts = "".join(f" {n} clients, p50 / p99 ms | chunks/s |" for n in CLIENTS)
    lines = [
        f"| case | model alone, 1 row, ms |{counts} beside the model, ms | cosine | max error | ready s "
        "| GiB |",
        "|---" * (2 + 2 * len(CLIENTS) + 5) + "|",
    ]
    for r in reports:
        cells = [
            f"{r['framework']}, {r.get('graphs', 0)} graphs, compile {r['compile']}",
            f"{r['model_ms'][1]:.1f}",
        ]
        for n in CLIENTS:
            c = r["clients"][n]
            cells += [f"{c['p50_ms']:.1f} / {c['p99_ms']:.1f}", f"{c['chunks_per_s']:.1f}"]
        cells += [f"{r['beside_model_ms']:.2f}", f"{r['cosine']:.5f}", f"{r['max_error']:.4f}"]
        cells += [f"{r['ready_s']:.1f}", f"{r.get('memory_GiB', float('nan')):.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frameworks", nargs="+", default=["QwenGR00T", "QwenPI", "PI0"])
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", help="default: cuda at size full, cpu at size tiny")
    parser.add_argument("--steps", type=int, help="denoise steps (default: the preset's)")
    parser.add_argument("--fp8", action="store_true", help="linear layers in float8")
    parser.add_argument("--compile", choices=("off", "blocks"), default="off")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument(
        "--idle_poll", action="store_true", help="a lone client once more under vla-serve --idle_poll"
    )
    parser.add_argument("--max_batch", type=int, help="default: 32, on a CPU 8")
    parser.add_argument("--client_processes", type=int, default=4, help="most that the clients share")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each number of clients")
    parser.add_argument("--out", type=Path, help="all figures as JSON")
    args = parser.parse_args()
    args.device = args.device or ("cuda" if args.size == "full" else "cpu")
    args.max_batch = args.max_batch or (32 if args.device.startswith("cuda") else 8)
    reports: list[dict[str, Any]] = []
    for name in args.frameworks:
        reports.append(measure(name, args))
        if args.out is not None:
            args.out.write_text(json.dumps(reports, indent=1) + "\n")
        print(json.dumps(reports[-1]), flush=True)
    print(markdown(reports))
    assert np.isfinite([r["cosine"] for r in reports]).all()


if __name__ == "__main__":
    main()
