"""A server under more load than it can answer: the table of docs/reliability.md.

    python benchmarks/serve/load.py [--seconds 20]

The model is a clock that sleeps, so that the figures are the queue's and not the machine's. Clients have a
process of their own, as robots do. What is due is what the model can answer by how long its full runs took;
half of that where it is a robot beside a flood.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor

import grpc
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyServer
from vla_serve.probing.load import Outcome, closed_loop, open_loop
from vla_serve.server_cli import SWITCH_S
from vla_serve.testing import TimedPolicy
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

SPEC = make_spec(1)
BATCHED = {"run_s": 0.08, "row_s": 0.005}
ROWS = 4
CAPACITY = ROWS / (BATCHED["run_s"] + ROWS * BATCHED["row_s"])


def row(name: str, outcome: Outcome, policy: TimedPolicy, rows: int, share: float = 1.0) -> None:
    """One line of the table; of a model that answers ``rows`` a run, ``share`` is due."""
    full = [seconds for size, seconds in policy.runs if size == rows]
    due = share * rows * len(full) / sum(full)
    others = ", ".join(f"{count} {what}" for what, count in sorted(outcome.other.items()) if count)
    print(
        f"| {name} | {outcome.rate:.1f} | {100 * outcome.rate / due:.0f} % | {outcome.percentile(50):.0f} "
        f"| {outcome.percentile(99):.0f} | {len(policy.runs)} | {others or '-'} |",
        flush=True,
    )


def closed(
    clients: Executor, name: str, model_s: float, number: int, timeout_s: float, seconds: float
) -> None:
    """Clients that each wait for their answer, one row a run."""
    policy = TimedPolicy(SPEC, model_s)
    with PolicyServer(policy, max_batch=1) as server:
        policy.runs.clear()
        seen = [make_observation(SPEC, i) for i in range(number)]
        outcome = clients.submit(closed_loop, server.address, seen, seconds, timeout_s).result()
    row(name, outcome, policy, 1)


def opened(clients: Executor, factor: float, timeout_s: float, seconds: float) -> None:
    """So many times what the model can answer, in batches."""
    policy = TimedPolicy(SPEC, **BATCHED)
    with PolicyServer(policy, max_batch=ROWS) as server:
        policy.runs.clear()
        what = (server.address, make_observation(SPEC), factor * CAPACITY, seconds, timeout_s)
        outcome = clients.submit(open_loop, *what).result()
    row(f"{factor:g} x capacity, deadline {timeout_s:g} s", outcome, policy, ROWS)


def flood(seconds: float) -> None:
    """One session that keeps 60 requests queued, beside one robot that asks once at a time."""
    policy = TimedPolicy(SPEC, 0.05)
    with (
        PolicyServer(policy, max_batch=1, max_queue=64) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        from vla_serve.messages.observation_codec import encode_observation

        stub, over = PolicyServiceStub(channel), threading.Event()
        session = stub.OpenSession(pb.OpenSessionRequest()).session_id
        message = encode_observation(make_observation(SPEC), SPEC.observation)
        request = pb.PredictRequest(session_id=session, observation=message)
        room = threading.Semaphore(60)

        def keep() -> None:
            while not over.is_set():
                room.acquire()
                stub.Predict.future(request, timeout=30).add_done_callback(lambda _: room.release())

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        time.sleep(1)
        policy.runs.clear()
        outcome = closed_loop(server.address, [make_observation(SPEC)], seconds, 10)
        over.set()
        room.release()
        thread.join()
    row("a robot beside a session with 60 queued", outcome, policy, 1, 0.5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row")
    parser.add_argument("--only", choices=("closed", "open", "flood"), help="one part of the table")
    args = parser.parse_args()
    seconds, only = args.seconds, args.only
    sys.setswitchinterval(SWITCH_S)
    print("| load | answers/s | of what is due | p50 ms | p99 ms | model runs | others |")
    print("|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as clients:
        clients.submit(make_spec, 1).result()  # it has started
        if only in (None, "closed"):
            closed(clients, "16 clients, 1 s model, deadline 10 s", 1.0, 16, 10, 2.25 * seconds)
            closed(clients, "6 clients, 0.2 s model, deadline 1 s", 0.2, 6, 1, seconds)
            closed(clients, "4 clients, 0.2 s model, deadline 1 s", 0.2, 4, 1, seconds)
        if only in (None, "open"):
            for factor in (1.0, 1.2, 2.0, 10.0):
                opened(clients, factor, 1.0, seconds)
    if only in (None, "flood"):
        flood(seconds)


if __name__ == "__main__":
    main()
