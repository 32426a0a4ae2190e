"""Load, deadlines, limits and the end of a server."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_serve import (
    PolicyBusy,
    PolicyClient,
    PolicyClientError,
    PolicyServer,
    PolicyTimeout,
    PolicyUnavailable,
    SessionLost,
)
from vla_serve.server import SERVICE
from vla_serve.testing import until


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as executor:
        yield executor


def ask(server, spec, seed: int, timeout_s: float = 20.0) -> float:
    with PolicyClient(server.address, timeout_s=20.0) as client:
        return float(client.predict(make_observation(spec), seed, timeout_s).actions[0, 0])


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(server, policy, spec, pool):
    policy.gate.clear()
    first = pool.submit(ask, server, spec, 1)
    until(policy.running.is_set)
    second = pool.submit(ask, server, spec, 2)
    until(lambda: server.engine.pending == 2)
    start = time.monotonic()
    with pytest.raises(PolicyBusy, match="1 requests are waiting") as caught:
        ask(server, spec, 3)
    assert time.monotonic() - start < 10  # of the 20 that the model is held
    assert caught.value.retry_after_s > 0
    policy.gate.set()
    assert first.result() != second.result()
    assert [seed for _, seed, _ in policy.calls] == [1, 2]
    assert ask(server, spec, 4)


def test_a_request_whose_deadline_passed_while_it_waited_is_never_run(server, policy, spec, pool):
    policy.gate.clear()
    first = pool.submit(ask, server, spec, 1)
    until(policy.running.is_set)
    with pytest.raises(PolicyTimeout):
        ask(server, spec, 2, 0.2)
    policy.gate.set()
    first.result()
    assert ask(server, spec, 3)
    assert [seed for _, seed, _ in policy.calls] == [1, 3]
    until(lambda: server.engine.pending == 0)


def test_a_deadline_during_the_run_frees_the_client(server, policy, spec):
    policy.gate.clear()
    start = time.monotonic()
    with PolicyClient(server.address) as client:
        with pytest.raises(PolicyTimeout, match="no answer before the deadline"):
            client.predict(make_observation(spec), timeout_s=0.2)
        assert time.monotonic() - start < 10  # of the 20 that the model is held
        policy.gate.set()
        assert client.predict(make_observation(spec)).actions.shape == (4, 7)


def test_requests_in_flight_are_finished_and_new_ones_refused(policy, spec, pool):
    server = PolicyServer(policy)
    server.start()
    policy.running.clear()
    with PolicyClient(server.address) as late:
        policy.gate.clear()
        running = pool.submit(ask, server, spec, 5)
        until(policy.running.is_set)
        waiting = pool.submit(ask, server, spec, 6)
        until(lambda: server.engine.pending == 2)
        stopping = pool.submit(server.stop)
        until(lambda: server._health._gracefully_shutting_down)
        with pytest.raises(PolicyUnavailable):
            late.predict(make_observation(spec))
        assert not stopping.done()
        policy.gate.set()
        assert waiting.result() == running.result() + 1
        stopping.result(10)
    with pytest.raises(PolicyUnavailable, match="is vla-serve running there"):
        PolicyClient(server.address).open()


def test_grace_ends(policy, spec, pool):
    server = PolicyServer(policy)
    server.start()
    policy.running.clear()
    policy.gate.clear()
    stuck = pool.submit(ask, server, spec, 5)
    until(policy.running.is_set)
    stopping = pool.submit(server.stop, 0.2)
    with pytest.raises(PolicyUnavailable):
        stuck.result(10)
    policy.gate.set()
    stopping.result(10)


def test_health_follows_the_life_of_the_server(policy):
    with PolicyServer(policy) as server, grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        seen = []
        watcher = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
        seen.append(next(watcher).status)
        stopping = threading.Thread(target=server.stop, args=(0.5,))
        stopping.start()
        seen.append(next(watcher).status)
        watcher.cancel()
        stopping.join()
    assert seen == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


def test_too_many_sessions(server):
    clients = [PolicyClient(server.address) for _ in range(4)]
    for client in clients[:3]:
        client.open()
    told = set()
    for _ in range(5):
        with pytest.raises(PolicyBusy, match="3 sessions are open") as caught:
            clients[3].open()
        told.add(caught.value.retry_after_s)
    assert len(told) > 1  # those who are refused together do not come back together
    clients[0].close()
    clients[3].open()
    for client in clients[1:]:
        client.close()


def test_idle_sessions_expire_and_make_room(policy, spec):
    now = 0.0
    with PolicyServer(policy, max_sessions=1, session_idle_s=200.0) as server:
        server.sessions.clock = lambda: now
        with PolicyClient(server.address) as client:
            for _ in range(4):
                client.predict(make_observation(spec))
                now += 80.0  # used, so it stays
            now += 300.0
            with pytest.raises(SessionLost, match=r"was idle for 200 s"):
                client.predict(make_observation(spec))
        with PolicyClient(server.address):
            (session,) = server.sessions.listed()
            until(lambda: session.holds)
            now += 150.0
            with pytest.raises(PolicyBusy):
                PolicyClient(server.address).open()
            now += 150.0
            PolicyClient(server.address).open()


@pytest.fixture
def large():
    return make_spec(height=512, width=512)


def test_the_client_does_not_send_what_is_too_large(policy, large):
    policy.specs = {"default": large}
    with (
        PolicyServer(policy, max_message_mb=1) as server,
        PolicyClient(server.address) as client,
        pytest.raises(PolicyClientError, match=r"1573\d\d\d bytes, the server takes 1048576; use enc"),
    ):
        client.predict(make_observation(large))


def test_the_server_does_not_take_what_is_too_large(policy, large):
    policy.specs = {"default": large}
    with PolicyServer(policy, max_message_mb=1) as server, PolicyClient(server.address) as client:
        client._max_bytes = 2**40
        with pytest.raises(PolicyClientError, match="raise the server's --max_message_mb"):
            client.predict(make_observation(large))
        flat = {c.name: np.zeros((512, 512, 3), np.uint8) for c in large.observation.cameras}
        client._encoding = "png"
        client.predict(replace(make_observation(large), images=flat))


def test_an_answer_larger_than_grpcs_default_arrives(policy):
    spec = make_spec(horizon=200_000)
    policy.specs = {"default": spec}
    with PolicyServer(policy) as server, PolicyClient(server.address) as client:
        assert client.predict(make_observation(spec)).actions.shape == (200_000, 7)


def test_a_taken_port_is_an_error(policy, server):
    with pytest.raises(UserError, match=f"port: {server.port} of 127.0.0.1 is taken"):
        PolicyServer(policy, port=server.port).start()


@pytest.mark.parametrize(
    "options",
    [
        {"port": 70_000},
        {"max_queue": -1},
        {"max_sessions": 0},
        {"max_message_mb": 0},
        {"denoise_steps": 0},
        {"session_idle_s": 0.0},
    ],
)
def test_server_options_are_checked(policy, options):
    with pytest.raises(UserError, match=next(iter(options))):
        PolicyServer(policy, **options)


def test_a_policy_is_warmed_up_before_the_port_opens(policy):
    with PolicyServer(policy, denoise_steps=3):
        assert [(seed, steps) for _, seed, steps in policy.calls] == [(0, 3)]


def test_wait_ready(server):
    client = PolicyClient(server.address)
    client.wait_ready(5)
    client.close()
    absent = PolicyClient("127.0.0.1:1")
    with pytest.raises(PolicyTimeout, match=r"127\.0\.0\.1:1: not ready after 0\.3 s"):
        absent.wait_ready(0.3)
    absent.close()


def test_two_embodiments_of_one_policy(policy, spec):
    other = replace(make_spec(1, horizon=2), embodiment="other")
    policy.specs = {"default": spec, "other": other}
    with PolicyServer(policy) as server:
        with pytest.raises(PolicyClientError, match=r"config\.embodiment: name one of default, other"):
            PolicyClient(server.address).open()
        with PolicyClient(server.address, embodiment="other", observation_spec=other.observation) as client:
            assert client.predict(make_observation(other)).actions.shape == (2, 7)
            assert policy.calls[-1][0].embodiment == "other"
