"""What an operator sees: metrics, and a log that nobody can forge."""

from __future__ import annotations

import json
import logging
import sys
import urllib.request

import grpc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyClient, PolicyClientError, PolicyServer
from vla_serve.observability.logs import JsonFormatter, TextFormatter, take_request_id
from vla_serve.testing import TimedPolicy
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

SPEC = make_spec(1)


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if line and not line.startswith("#")
    }


def test_metrics_count_what_happened():
    pytest.importorskip("prometheus_client", reason="needs the extra vla-serve[metrics]")
    with (
        PolicyServer(TimedPolicy(SPEC, 0.01), metrics_port=0) as server,
        PolicyClient(server.address) as client,
    ):
        for _ in range(3):
            client.predict(make_observation(SPEC))
        client.predict_batch([make_observation(SPEC)] * 2)
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
            PolicyServiceStub(channel).Predict(pb.PredictRequest(session_id="nobody\n"), timeout=10)
        seen = scrape(server.metrics_port)
        port = server.metrics_port
        with pytest.raises(UserError, match=f"metrics_port: {port} of 127.0.0.1"):
            PolicyServer(TimedPolicy(SPEC), metrics_port=port).start()
    assert seen['vla_serve_calls_total{code="OK",rpc="Predict"}'] == 3
    assert seen['vla_serve_calls_total{code="OK",rpc="PredictBatch"}'] == 1
    assert seen['vla_serve_calls_total{code="INVALID_ARGUMENT",rpc="Predict"}'] == 1
    assert seen['vla_serve_chunks_total{policy="default"}'] == 5
    assert seen['vla_serve_request_seconds_count{policy="default"}'] == 5
    assert seen['vla_serve_part_seconds_sum{part="model",policy="default"}'] >= 5 * 0.01
    assert seen["vla_serve_sessions"] == 1
    assert seen["vla_serve_in_flight"] == seen["vla_serve_in_flight_bytes"] == 0
    assert seen['vla_serve_queue{policy="default",revision="1"}'] == 0
    assert "nobody" not in "".join(seen)
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def record(message: str, name: str = "vla_serve.server") -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, __file__, 1, "%s", (message,), None)


@settings(deadline=None, max_examples=40)
@given(st.text(), st.text())
def test_whatever_is_logged_is_one_line(message, name):
    text = TextFormatter().format(record(message, name))
    assert len(text.splitlines()) == 1
    line = JsonFormatter().format(record(message, name))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == message


@settings(deadline=None, max_examples=40)
@given(st.text())
@example("a\n2026-11-29 00:00:00,000 INFO vla_serve.server: session opened")
def test_a_traceback_is_kept_and_what_a_client_wrote_begins_no_line(message):
    try:
        raise ValueError(message)
    except ValueError:
        failed = record("it failed")
        failed.exc_info = sys.exc_info()
    line = JsonFormatter().format(failed)
    assert len(line.splitlines()) == 1
    assert "ValueError" in json.loads(line)["traceback"]
    _, *more = TextFormatter().format(failed).splitlines()
    assert "Traceback" in more[0]
    assert all(line.startswith("    ") for line in more)


@settings(deadline=None, max_examples=40)
@given(st.one_of(st.text(), st.binary()))
def test_only_plain_words_become_request_ids(given_):
    name = take_request_id([("x-request-id", given_)])
    assert 1 <= len(name) <= 64
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)


def test_a_callers_id_is_in_the_reply_and_the_log(caplog):
    with (
        caplog.at_level(logging.INFO),
        PolicyServer(TimedPolicy(SPEC)) as server,
        PolicyClient(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        one, two = (client.predict(make_observation(SPEC)).request_id for _ in range(2))
        assert one
        assert one != two
        with pytest.raises(grpc.RpcError):
            PolicyServiceStub(channel).Predict(
                pb.PredictRequest(session_id="no"), timeout=10, metadata=[("x-request-id", "robot-7.12")]
            )
    assert "Predict refused id=robot-7.12: INVALID_ARGUMENT" in caplog.text


def test_messages_that_are_too_large_for_one_chunk_are_refused():
    with PolicyServer(TimedPolicy(SPEC)) as server, PolicyClient(server.address) as client:
        limits = client.server_info()
        assert limits.max_message_bytes < limits.limits.max_batch_bytes
        client._max_bytes = 2**40
        request = pb.PredictRequest(session_id="x" * (limits.max_message_bytes + 1))
        with pytest.raises(PolicyClientError, match="larger than max"):
            client._call(client._connection.stub.Predict, request)


@pytest.mark.parametrize(
    ("option", "module", "extra"),
    [
        ({"metrics_port": 0}, "prometheus_client", "metrics"),
        ({"reflection": True}, "grpc_reflection.v1alpha", "reflection"),
        ({"otlp_endpoint": "http://127.0.0.1:4317"}, "opentelemetry.sdk.resources", "otel"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(option, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError, match=rf"{next(iter(option))}: '[\w.]+' is not installed: .*vla-serve\[{extra}\]"
    ):
        PolicyServer(TimedPolicy(SPEC), **option)
