"""Clients that misbehave, go away or send nonsense, and a model that dies: nobody else is harmed."""

from __future__ import annotations

import io
import logging
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image as PILImage
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyBusy, PolicyClient, PolicyServer, PolicyUnavailable
from vla_serve.messages.codec import FieldError, decode_image
from vla_serve.messages.observation_codec import encode_observation
from vla_serve.messages.status import details_of, find, one_line
from vla_serve.server import SERVICE
from vla_serve.testing import TimedPolicy
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1 import types_pb2
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

SPEC = make_spec(1)


def until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@contextmanager
def streams_without_a_body(body_timeout_s: float):
    """A server, a channel to it, and 80 calls over that."""
    stop = threading.Event()

    def nothing():
        stop.wait(60)
        yield from ()

    with (
        PolicyServer(TimedPolicy(SPEC), body_timeout_s=body_timeout_s) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = channel.stream_unary(f"/{SERVICE}/Predict", bytes, bytes)
        yield server, channel, [call.future(nothing(), timeout=60) for _ in range(80)]
        stop.set()


def test_streams_without_a_body_keep_nobody_waiting():
    """80 of them occupied every handler, health included."""
    with streams_without_a_body(60.0) as (server, channel, calls):
        until(lambda: server._in_flight.requests == 64)
        with PolicyClient(server.address) as client:
            client.predict(make_observation(SPEC))
            client.server_info()
        stub = health_pb2_grpc.HealthStub(channel)  # over the very connection
        stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5)
        PolicyServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=5)
        assert server._in_flight.requests == 64  # all the while
        for waiting in calls:
            waiting.cancel()
        until(lambda: not server._in_flight.requests)


def test_streams_without_a_body_end():
    with streams_without_a_body(1.0) as (server, _, calls):
        codes = {c.exception(30).code() for c in calls}
        assert grpc.StatusCode.DEADLINE_EXCEEDED in codes
        assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
        until(lambda: not server._in_flight.requests)


CLIENT = """
import sys, time
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyClient
clients = [PolicyClient(sys.argv[1]) for _ in range(int(sys.argv[2]))]
for client in clients:
    client.open()
    client.predict(make_observation(make_spec(1)))
print("ready", flush=True)
time.sleep(60)
"""


def test_sessions_whose_client_was_killed_make_room_at_once_and_go():
    """64 of them refused every newcomer for 600 s."""
    policy = TimedPolicy(SPEC)
    with PolicyServer(policy, max_sessions=20) as server:
        command = [sys.executable, "-c", CLIENT, server.address, "20"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(PolicyBusy, match="20 sessions are open"):
            PolicyClient(server.address).open()
        process.send_signal(signal.SIGKILL)
        process.wait()
        start = time.monotonic()
        until(lambda: all(s.lost for s in server.sessions._sessions.values()))
        with PolicyClient(server.address) as client:
            client.predict(make_observation(SPEC))
        assert time.monotonic() - start < 15  # half of what a session that nobody holds keeps its place for
        server.sessions._lost_s = 0.1
        until(lambda: len(server.sessions) == 0, 5)


def test_a_quiet_session_that_nobody_holds_makes_room():
    with PolicyServer(TimedPolicy(SPEC), max_sessions=1) as server:
        with grpc.insecure_channel(server.address) as channel:
            PolicyServiceStub(channel).OpenSession(pb.OpenSessionRequest())
        with pytest.raises(PolicyBusy):
            PolicyClient(server.address).open()
        server.sessions._quiet_s = 0.0
        PolicyClient(server.address).open()


def test_a_session_comes_back_over_a_new_connection():
    with PolicyServer(TimedPolicy(SPEC)) as server, PolicyClient(server.address) as client:
        (session,) = server.sessions._sessions.values()
        until(lambda: session.holds == 1)
        client._hold.cancel()
        until(lambda: session.lost)
        client.predict(make_observation(SPEC))
        until(lambda: session.holds == 1)


@pytest.mark.parametrize("rpc", ["Predict", "OpenSession", "GetServerInfo", "ResetSession", "CloseSession"])
def test_bytes_that_are_no_message_are_the_clients_mistake(rpc, caplog):
    with (
        PolicyServer(TimedPolicy(SPEC)) as server,
        grpc.insecure_channel(server.address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary(f"/{SERVICE}/{rpc}")(b"\xff\xff\xff\xff", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violation = find(details_of(caught.value), error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == "request"
    assert f"no vla_serve.v1.{rpc}Request" in violation.description
    assert "Traceback" not in caplog.text


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_texts_in_a_png_are_never_unpacked():
    """60 files of 64 kB took 1.8 GB."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(40 * 2**20), 9))
    message = types_pb2.Image(
        encoding=types_pb2.IMAGE_ENCODING_PNG, height=32, width=32, data=data[:33] + bomb + data[33:]
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = [decode_image(message, 32, 32) for _ in range(20)]
    np.testing.assert_array_equal(kept[0], pixels)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024  # KiB


@pytest.mark.parametrize("height", [32, 50_000])
def test_pixels_beyond_the_contract_are_never_unpacked(height):
    """A file of 100 kB whose pixels are 100 MiB, with the contract's size in its header or its own."""
    header = struct.pack(">IIBBBBB", 32, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100 * 2**20), 9)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    message = types_pb2.Image(encoding=types_pb2.IMAGE_ENCODING_PNG, height=32, width=32, data=data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if height == 32:  # the first rows are what fits, and the rest is not looked at
        assert not decode_image(message, 32, 32).any()
    else:
        with pytest.raises(FieldError, match="the PNG holds 50000 x 32"):
            decode_image(message, 32, 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024  # KiB


def test_a_message_larger_than_any_that_fits_the_contract_is_refused_unread():
    """40 of 30 MB kept 1.45 GB."""
    with PolicyServer(TimedPolicy(SPEC)) as server, PolicyClient(server.address) as client:
        assert client._max_bytes < 2**18
        client.predict(make_observation(SPEC))
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/Predict")(bytes(30 * 2**20), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_requests_in_flight_are_bounded_by_connection_and_by_bytes():
    policy = TimedPolicy(SPEC, 0.3)
    observation = encode_observation(make_observation(SPEC), SPEC.observation)
    with (
        PolicyServer(policy, max_in_flight=3, max_batch=1) as server,
        grpc.insecure_channel(server.address) as channel,
        PolicyClient(server.address) as other,
    ):
        stub = PolicyServiceStub(channel)
        session = stub.OpenSession(pb.OpenSessionRequest()).session_id
        request = pb.PredictRequest(session_id=session, observation=observation)
        calls = [stub.Predict.future(request, timeout=20) for _ in range(6)]
        codes = [c.exception() and c.exception().code() for c in calls]
        assert codes.count(None) == 3
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 3
        other.predict(make_observation(SPEC))  # another connection has its own
        assert other.server_info().limits.max_in_flight == 3
        server._in_flight.bytes += 256 * 2**20
        with pytest.raises(PolicyBusy, match="256 MiB are under way"):
            other.predict(make_observation(SPEC))
        server._in_flight.bytes -= 256 * 2**20


def test_a_client_that_goes_takes_its_waiting_request_with_it():
    policy = TimedPolicy(SPEC, 1.0)
    with PolicyServer(policy, max_batch=1) as server:
        channel = grpc.insecure_channel(server.address)
        stub = PolicyServiceStub(channel)
        session = stub.OpenSession(pb.OpenSessionRequest()).session_id
        observation = encode_observation(make_observation(SPEC), SPEC.observation)
        policy.runs.clear()
        request = pb.PredictRequest(session_id=session, observation=observation)
        calls = [stub.Predict.future(request) for _ in range(20)]
        until(lambda: server.engine.pending >= 18)
        channel.close()
        until(lambda: server.engine.pending <= 1, 2.0)
        until(lambda: server.engine.pending == 0)
        assert len(policy.runs) <= 2
        assert len(calls) == 20


def test_ids_of_clients_forge_no_line_of_the_log(caplog):
    assert one_line("a\nWARNING b\x1b[0m") == "a\\x0aWARNING b\\x1b[0m"
    with (
        caplog.at_level(logging.INFO),
        PolicyServer(TimedPolicy(SPEC)) as server,
        grpc.insecure_channel(server.address) as channel,
        pytest.raises(grpc.RpcError),
    ):
        PolicyServiceStub(channel).Predict(pb.PredictRequest(session_id="x\nbad"), timeout=10)
    assert not [r for r in caplog.records if "\n" in r.getMessage()]


def test_session_ids_stay_out_of_the_log(caplog):
    with (
        caplog.at_level(logging.INFO),
        PolicyServer(TimedPolicy(SPEC)) as server,
        PolicyClient(server.address) as client,
    ):
        session = client._session
        client.predict(make_observation(SPEC))
    assert session not in caplog.text


def test_idle_watchers_and_held_sessions_do_not_hold_up_a_stop():
    server = PolicyServer(TimedPolicy(SPEC))
    server.start()
    with grpc.insecure_channel(server.address) as channel, PolicyClient(server.address):
        watcher = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watcher).status == health_pb2.HealthCheckResponse.SERVING
        start = time.monotonic()
        server.stop(30)
        assert time.monotonic() - start < 15  # half of the grace
        assert next(watcher).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_dead_model_is_not_serving():
    class Dying(TimedPolicy):
        dead = False

        def predict(self, prepared, steps=None):
            if self.dead:
                raise SystemExit(3)
            return super().predict(prepared, steps)

    policy = Dying(SPEC)
    with PolicyServer(policy) as server, grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with PolicyClient(server.address) as client:
            policy.dead = True
            with pytest.raises(PolicyUnavailable, match="model thread died"):
                client.predict(make_observation(SPEC))
        until(lambda: stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5).status == 2)
        server.wait()
        assert server.failure == "the model thread died (SystemExit)"


SERVER = """
import sys, time
from pathlib import Path
import numpy as np
from vla_core.testing import make_spec
from vla_serve import server_cli
from vla_serve.server import Loaded
from vla_serve.testing import TimedPolicy

class Hanging(TimedPolicy):
    def predict(self, prepared, steps=None):
        if any(row.seed == 13 for row in prepared.rows):
            print("hangs", flush=True)
            time.sleep(3600)
        return super().predict(prepared, steps)

server_cli._loader = lambda args: lambda path: Loaded(Hanging(make_spec(1)))
sys.exit(server_cli.main(sys.argv[1:]))
"""


def start(tmp_path, *arguments):
    port_file = tmp_path / "port"
    command = [sys.executable, "-c", SERVER, "--ckpt_path", "x", "--port", "0", "--port_file", str(port_file)]
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: port_file.exists() or process.poll() is not None, 30)
    assert process.poll() is None, process.stderr.read()
    return process, f"127.0.0.1:{port_file.read_text().strip()}"


def hang(process: subprocess.Popen[str], address: str) -> threading.Thread:
    """A thread that asks the model what it hangs at, and it does."""

    def ask() -> None:
        with PolicyClient(address) as client, pytest.raises(PolicyUnavailable):
            client.predict(make_observation(SPEC), seed=13, timeout_s=60)

    thread = threading.Thread(target=ask)
    thread.start()
    assert process.stdout is not None
    assert process.stdout.readline() == "hangs\n"
    return thread


def test_a_hung_model_ends_the_process(tmp_path):
    process, address = start(tmp_path, "--model_timeout_s", "1")
    thread = hang(process, address)
    assert process.wait(30) == 1  # half of what is allowed by default
    thread.join()
    assert "vla-serve: the model has not answered for 1 s" in process.communicate()[1]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_hung_model_too(tmp_path, second):
    process, address = start(tmp_path)
    thread = hang(process, address)
    process.send_signal(signal.SIGTERM)
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        until(lambda: stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5).status == 2)
    time.sleep(0.5)
    assert process.poll() is None  # it finishes what is in flight
    process.send_signal(second)
    assert process.wait(20) == 128 + second  # before the grace is over
    thread.join()
    process.communicate()


def test_the_grace_of_a_stop_ends(tmp_path):
    process, address = start(tmp_path, "--grace_s", "0.3")
    thread = hang(process, address)
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    thread.join()
    process.communicate()
