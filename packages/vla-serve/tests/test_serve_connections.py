"""Connections that end, freeze or never say anything: their places are free again, nobody else notices."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyClient, PolicyServer
from vla_serve.host import listen
from vla_serve.host.open_files import allow_connections
from vla_serve.testing import TimedPolicy
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

SPEC = make_spec(1)


def until(condition, seconds: float = 10.0) -> float:
    """Wait; how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it never happened"
        time.sleep(0.005)
    return time.monotonic() - start


STREAMS = """
import sys, threading, time
import grpc
from vla_core.testing import make_observation, make_spec
from vla_serve.messages.observation_codec import encode_observation
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

SPEC = make_spec(1)
observation = encode_observation(make_observation(SPEC), SPEC.observation)
for i in range(int(sys.argv[2])):
    channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.use_local_subchannel_pool", 1)])
    stub = PolicyServiceStub(channel)
    session = stub.OpenSession(pb.OpenSessionRequest()).session_id
    more = threading.Event()
    def ask(session=session, more=more):
        request = pb.PredictRequest(observation=observation)
        for number in range(2):
            yield pb.StreamActionsRequest(session_id=session, request_id=number, observation=request)
        more.wait()
    answers = stub.StreamActions(ask())
    next(answers)
    globals()[f"kept_{i}"] = (channel, answers, more)
print("ready", flush=True)
time.sleep(60)
"""


def killed(count: int) -> float:
    """``count`` clients, each with a connection and an open stream, die; seconds until all is free."""
    with PolicyServer(TimedPolicy(SPEC), max_sessions=count) as server:
        with PolicyClient(server.address) as client:
            client.predict(make_observation(SPEC))
        threads = threading.active_count()
        command = [sys.executable, "-c", STREAMS, server.address, str(count)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(server.sessions) == count
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        took = until(lambda: all(s.lost for s in server.sessions._sessions.values()))
        newcomers = [PolicyClient(server.address) for _ in range(count // 10)]
        for client in newcomers:  # each takes the place of one that is gone
            client.open()
        newcomers[0].predict(make_observation(SPEC))
        assert len(server.sessions) == count
        for client in newcomers:
            client.close()
        until(lambda: server._in_flight.requests == server._in_flight.bytes == server.engine.pending == 0)
        server.sessions._lost_s = 0.0
        until(lambda: len(server.sessions) == 0)
        until(lambda: threading.active_count() <= threads)
    return took


def test_clients_killed_mid_stream_leave_nothing():
    assert killed(40) < 2.0


@pytest.mark.slow
def test_200_clients_killed_mid_stream_leave_nothing():
    assert killed(200) < 2.0


# The client's side of HTTP/2: its preface, empty settings, and headers of which the rest never comes.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
CUT_HEADERS = bytes((0, 0, 200, 1, 4, 0, 0, 0, 1)) + b"\x83\x86"


def test_connections_that_never_say_anything_are_closed():
    with PolicyServer(TimedPolicy(SPEC), body_timeout_s=1.0) as server:
        words = [b"", PREFACE[:10], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(300)]
        sockets = []
        for number in range(80):
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            sock.sendall(words[number % len(words)])
            sockets.append(sock)
        with PolicyClient(server.address) as client:
            client.predict(make_observation(SPEC))
        for sock in sockets:
            assert ended(sock)
            sock.close()


def half_frames(ends: bool) -> None:
    """80 connections send half of their headers; whether they are closed is waited for if ``ends``."""
    with PolicyServer(TimedPolicy(SPEC), body_timeout_s=1.0) as server:
        sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(80)]
        for sock in sockets:
            sock.sendall(PREFACE + SETTINGS + CUT_HEADERS)
        with PolicyClient(server.address) as client:
            client.predict(make_observation(SPEC))
            assert server._in_flight.requests == 0
        for sock in sockets:
            assert not ends or ended(sock)
            sock.close()


def test_half_a_frame_keeps_nobody_waiting():
    half_frames(ends=False)


@pytest.mark.slow
def test_connections_with_half_a_frame_are_closed():
    half_frames(ends=True)


def test_a_connection_on_which_nothing_is_under_way_is_closed_and_comes_back(monkeypatch):
    monkeypatch.setattr(listen, "IDLE_S", 0.2)
    states: list[object] = []
    with PolicyServer(TimedPolicy(SPEC)) as server, grpc.insecure_channel(server.address) as channel:
        channel.subscribe(states.append)
        stub, idle = PolicyServiceStub(channel), grpc.ChannelConnectivity.IDLE
        until(lambda: states, 20)  # idle, as none is made yet
        with PolicyClient(server.address) as held:  # holds its session all the time
            for closed in (1, 2):
                session = stub.OpenSession(pb.OpenSessionRequest(), timeout=10).session_id
                until(lambda closed=closed: states.count(idle) > closed, 20)
            stub.CloseSession(pb.CloseSessionRequest(session_id=session), timeout=10)
            (kept,) = [s for s in server.sessions.listed() if s.was_held]
            assert kept.holds == 1
            held.predict(make_observation(SPEC))


LIMIT_SCRIPT = """
import resource
from vla_serve.host.open_files import allow_connections

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
allow_connections()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] == (hard if 0 < hard < 2**16 else 2**16))
"""


def test_as_many_connections_as_the_system_allows():
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", LIMIT_SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("most", "error", "allowed"), [(10240, ValueError("no"), 8192), (0, OSError("no"), 256)]
)
def test_a_kernel_that_allows_less_than_the_hard_limit(monkeypatch, caplog, most, error, allowed):
    resource = pytest.importorskip("resource")
    limits = [256]

    def setrlimit(kind: int, pair: tuple[int, int]) -> None:
        if pair[0] > most:
            raise error
        limits.append(pair[0])

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[-1], resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    caplog.set_level(logging.INFO)
    allow_connections()
    assert limits[-1] == allowed
    assert f"at most {allowed} connections" in caplog.text


def ended(sock: socket.socket) -> bool:
    """Whether the other end closes the connection."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


class Freezer:
    """A relay to a port that can stop passing anything on, as a robot does whose power is cut."""

    def __init__(self, port: int) -> None:
        self._port, self.frozen = port, threading.Event()
        self._sockets: list[socket.socket] = [socket.create_server(("127.0.0.1", 0))]
        self.address = f"127.0.0.1:{self._sockets[0].getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        here, _ = self._sockets[0].accept()
        there = socket.create_connection(("127.0.0.1", self._port))
        self._sockets += [here, there]
        for pair in ((here, there), (there, here)):
            threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if not self.frozen.is_set():
                    target.sendall(data)
        except OSError:
            pass

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.mark.slow
def test_a_robot_without_power_frees_its_place():
    """No end of the connection arrives: the server asks, and hears nothing."""
    with PolicyServer(TimedPolicy(SPEC), max_sessions=1) as server:
        relay = Freezer(server.port)
        client = PolicyClient(relay.address)
        client.open()
        client.predict(make_observation(SPEC))
        (session,) = server.sessions._sessions.values()
        until(lambda: session.holds == 1)
        relay.frozen.set()
        took = until(lambda: session.lost, 40)
        assert took < 20
        with PolicyClient(server.address) as other:
            other.predict(make_observation(SPEC))
        relay.close()
