"""A server under more load than it can answer: the table of docs/reliability.md.

    python benchmarks/serve/load.py [--seconds 20]

The model is a clock that sleeps, so that the figures are the queue's and not the machine's; server and
clients share one process.
"""

from __future__ import annotations

import argparse
import threading
import time

import grpc
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyServer
from vla_serve._load import Outcome, closed_loop, open_loop
from vla_serve.testing import TimedPolicy
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

SPEC = make_spec(1)
BATCHED = {"run_s": 0.08, "row_s": 0.005}
ROWS = 4
CAPACITY = ROWS / (BATCHED["run_s"] + ROWS * BATCHED["row_s"])


def row(name: str, outcome: Outcome, capacity: float, runs: int) -> None:
    """One line of the table."""
    others = ", ".join(f"{count} {what}" for what, count in sorted(outcome.other.items()) if count)
    print(
        f"| {name} | {outcome.rate:.1f} | {100 * outcome.rate / capacity:.0f} % "
        f"| {outcome.percentile(50):.0f} | {outcome.percentile(99):.0f} | {runs} | {others or '-'} |",
        flush=True,
    )


def closed(name: str, model_s: float, clients: int, timeout_s: float, seconds: float) -> None:
    """Clients that each wait for their answer, one row a run."""
    policy = TimedPolicy(SPEC, model_s)
    with PolicyServer(policy, max_batch=1) as server:
        policy.runs.clear()
        seen = [make_observation(SPEC, i) for i in range(clients)]
        outcome = closed_loop(server.address, seen, seconds, timeout_s)
    row(name, outcome, 1 / model_s, len(policy.runs))


def opened(factor: float, timeout_s: float, seconds: float) -> None:
    """So many times what the model can answer, in batches."""
    policy = TimedPolicy(SPEC, **BATCHED)
    with PolicyServer(policy, max_batch=ROWS) as server:
        policy.runs.clear()
        outcome = open_loop(server.address, make_observation(SPEC), factor * CAPACITY, seconds, timeout_s)
    row(f"{factor:g} x capacity, deadline {timeout_s:g} s", outcome, CAPACITY, len(policy.runs))


def flood(seconds: float) -> None:
    """One session that keeps 60 requests queued, beside one robot that asks once at a time."""
    policy = TimedPolicy(SPEC, 0.05)
    with (
        PolicyServer(policy, max_batch=1, max_queue=64) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        from vla_serve.observation_codec import encode_observation

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
    row("a robot beside a session with 60 queued", outcome, 20 / 2, len(policy.runs))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row")
    seconds = parser.parse_args().seconds
    print("| load | answers/s | of what is due | p50 ms | p99 ms | model runs | others |")
    print("|---|---|---|---|---|---|---|")
    closed("16 clients, 1 s model, deadline 10 s", 1.0, 16, 10, 2.25 * seconds)
    closed("6 clients, 0.2 s model, deadline 1 s", 0.2, 6, 1, seconds)
    closed("4 clients, 0.2 s model, deadline 1 s", 0.2, 4, 1, seconds)
    for factor in (1.0, 1.2, 2.0, 10.0):
        opened(factor, 1.0, seconds)
    flood(seconds)


if __name__ == "__main__":
    main()
