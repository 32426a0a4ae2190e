"""More load than a server can answer: who is refused, when, and with which words; and whose turn it is.

How many answers come in time: in simulated time in test_engine_load.py, measured by benchmarks/serve/load.py.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2 as details_pb
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyClient, PolicyServer
from vla_serve.engine.estimates import REMEMBERED
from vla_serve.engine.sessions import Session
from vla_serve.messages.observation_codec import encode_observation
from vla_serve.messages.status import details_of, find
from vla_serve.probing.load import closed_loop, open_loop
from vla_serve.rpcs.connections import REMEMBERED as REMEMBERED_CONNECTIONS
from vla_serve.rpcs.connections import Connections
from vla_serve.server import SERVICE
from vla_serve.testing import GatedPolicy, TimedPolicy
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

SPEC = make_spec(1)


@pytest.fixture(scope="module")
def clients():
    """The clients' own process, as robots have: in the server's they would share one lock with it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        pool.submit(make_spec, 1).result()
        yield lambda drive, *arguments: pool.submit(drive, *arguments).result()


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_more_requests_than_can_be_answered_are_refused_with_a_time_to_come_back(clients, factor):
    """How many are answered in time: test_engine_load.py, where no machine is slow."""
    rows = 4
    policy = TimedPolicy(SPEC, 0.18, 0.005)
    with PolicyServer(policy, max_batch=rows) as server:
        seen = make_observation(SPEC)
        outcome = clients(open_loop, server.address, seen, factor * rows / 0.2, 2.0, 1.0)
    assert outcome.answered
    assert not outcome.other["without retry"]
    refused = {"resource_exhausted", "deadline_exceeded", "without retry"}
    assert set(outcome.other) <= refused


def test_what_no_policy_can_answer_in_time_is_refused_unread():
    """What is late already costs as little as can be: else a server that fell behind stays behind."""
    policy = GatedPolicy(SPEC)
    with (
        PolicyServer(policy, max_batch=1) as server,
        grpc.insecure_channel(server.address) as channel,
        PolicyClient(server.address) as client,
        ThreadPoolExecutor(1) as beside,
    ):
        policy.gate.clear()
        running = beside.submit(client.predict, make_observation(SPEC))
        while not server.engine._desk.running_s:
            time.sleep(0.005)
        for _ in range(REMEMBERED):
            server.engine._desk.estimates.record(None, 1, 3600.0)
        refused = unread(channel)
        policy.gate.set()
        running.result()
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert find(details_of(refused), details_pb.RetryInfo).retry_delay.ToSeconds() > 3000


def unread(channel) -> grpc.RpcError:
    """What a call is told that never sends a message."""
    over = threading.Event()
    body = (_ for _ in iter(over.wait, True))
    with pytest.raises(grpc.RpcError) as refused:
        channel.stream_unary(f"/{SERVICE}/Predict")(body, timeout=60)
    over.set()
    return refused.value


def test_what_its_session_has_waiting_refuses_a_request_unread():
    """Another session, whose turn comes sooner, is taken."""
    policy = GatedPolicy(SPEC)
    message = encode_observation(make_observation(SPEC), SPEC.observation)
    with (
        PolicyServer(policy, max_batch=1) as server,
        grpc.insecure_channel(server.address) as channel,
        PolicyClient(server.address) as other,
        ThreadPoolExecutor(1) as beside,
    ):
        stub = PolicyServiceStub(channel)
        session = stub.OpenSession(pb.OpenSessionRequest()).session_id
        request = pb.PredictRequest(session_id=session, observation=message)
        policy.gate.clear()
        calls = [stub.Predict.future(request, timeout=600) for _ in range(10)]
        while server.engine.waiting < 9 or not server.engine._desk.running_s:
            time.sleep(0.005)
        for _ in range(REMEMBERED):
            server.engine._desk.estimates.record(None, 1, 10.0)
        refused = unread(channel)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert find(details_of(refused), details_pb.RetryInfo).retry_delay.ToSeconds() > 40
        taken = beside.submit(other.predict, make_observation(SPEC), timeout_s=60)
        while server.engine.waiting < 10:
            assert not taken.done()
            time.sleep(0.005)
        policy.gate.set()
        taken.result()
        for call in calls:
            call.result()


def test_a_connection_of_several_sessions_or_of_one_that_supersedes_is_of_none():
    connections, (one, other) = Connections(), (Session(name, SPEC, 0.0, policy="p") for name in "ab")
    connections.used("robot", one)
    connections.used("robot", one)
    assert connections.session_of("robot") == ("a", "p")
    connections.used("robot", one, supersedes=True)
    connections.used("robot", one)
    connections.used("proxy", one)
    connections.used("proxy", other)
    connections.used("proxy", other)
    assert {connections.session_of(peer) for peer in ("robot", "proxy", "nobody")} == {None}
    for number in range(REMEMBERED_CONNECTIONS):
        connections.used(f"{number}", one)
    assert connections.session_of("0") == ("a", "p")
    assert len(connections._sessions) == REMEMBERED_CONNECTIONS


class Counted(TimedPolicy):
    """Keeps how many runs began from when a row was prepared to when it was run."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.prepared: dict[int, int] = {}
        self.waited: dict[int, int] = {}

    def prepare(self, rows):
        self.prepared.update((row.seed, len(self.runs)) for row in rows)
        return super().prepare(rows)

    def predict(self, prepared, steps=None):
        self.waited.update((r.seed, len(self.runs) - self.prepared[r.seed]) for r in prepared.rows)
        return super().predict(prepared, steps)


def test_a_session_that_fills_the_queue_starves_no_other():
    """First in, first out: 0 answers in 20 s."""
    policy = Counted(SPEC, 0.05)
    over, room = threading.Event(), threading.Semaphore(60)
    with (
        PolicyServer(policy, max_batch=1) as server,
        grpc.insecure_channel(server.address) as channel,
        PolicyClient(server.address) as client,
    ):
        stub = PolicyServiceStub(channel)
        session = stub.OpenSession(pb.OpenSessionRequest()).session_id
        message = encode_observation(make_observation(SPEC), SPEC.observation)
        request = pb.PredictRequest(session_id=session, observation=message)

        def flood() -> None:
            while not over.is_set():
                room.acquire()
                stub.Predict.future(request, timeout=30).add_done_callback(lambda _: room.release())

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        while server.engine.waiting < 50:
            time.sleep(0.01)
        for seed in range(10):
            client.predict(make_observation(SPEC), seed)
        over.set()
        room.release()
        thread.join()
    # The one that was going on, and one of the flood's.
    assert max(policy.waited[seed] for seed in range(10)) <= 2


def test_each_of_16_clients_gets_the_answer_to_its_own_question():
    policy = TimedPolicy(SPEC, 0.005)
    wrong = []

    def check(number, chunk):
        value = np.float32(number + make_observation(SPEC, number).state.mean())
        if not np.isclose(chunk.actions[0, 0], value):
            wrong.append((number, chunk.actions[0, 0]))

    with PolicyServer(policy) as server:
        seen = [make_observation(SPEC, i) for i in range(16)]
        outcome = closed_loop(server.address, seen, 2.0, check=check)
    assert not wrong
    assert len(outcome.answered) == 16
    assert max(rows for rows, _ in policy.runs) == 8
