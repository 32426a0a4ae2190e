"""OpenTelemetry spans, through the SDK's own exporter in memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from itertools import pairwise

import grpc
import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_serve import AsyncPolicyClient, PolicyClient, PolicyServer
from vla_serve.messages.observation_codec import encode_observation
from vla_serve.server import SERVICE
from vla_serve.testing import TimedPolicy
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

pytest.importorskip("opentelemetry.sdk", reason="needs the extra vla-serve[otel]")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vla_serve.observability import lookouts, tracing
from vla_serve.observability.tracing import Tracing, exporting_to

SPEC = make_spec(1)
PARTS = ["decode", "prepare", "queue", "infer", "finish"]
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def memory(monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs vla-serve[otel]")
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(lookouts, "exporting_to", lambda endpoint, service: Tracing(provider, service))
    return exporter


def spans_of(memory, name, count=1, parent=None):
    end = time.monotonic() + 10
    while True:
        found = [s for s in memory.get_finished_spans() if s.name == name]
        if parent is not None:
            found = [s for s in found if s.parent is not None and s.parent.span_id == parent.context.span_id]
        if len(found) >= count:
            return found
        assert time.monotonic() < end, [s.name for s in memory.get_finished_spans()]
        time.sleep(0.01)


def test_a_request_is_a_span_with_its_parts_in_the_callers_trace(memory):
    observation = encode_observation(make_observation(SPEC), SPEC.observation)
    with (
        PolicyServer(TimedPolicy(SPEC, 0.02), otlp_endpoint="http://127.0.0.1:4317") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = PolicyServiceStub(channel)
        session = stub.OpenSession(pb.OpenSessionRequest()).session_id
        metadata = (("traceparent", f"00-{TRACE}-{CALLER}-01"), ("x-request-id", "robot-7"))
        before = time.time_ns()
        stub.Predict(pb.PredictRequest(session_id=session, observation=observation), metadata=metadata)
        after = time.time_ns()
        (call,) = spans_of(memory, f"{SERVICE}/Predict")
    assert f"{call.context.trace_id:032x}" == TRACE
    assert f"{call.parent.span_id:016x}" == CALLER
    assert call.attributes["vla_serve.request_id"] == "robot-7"
    assert call.attributes["rpc.grpc.status"] == "OK"
    parts = [spans_of(memory, name, parent=call)[0] for name in PARTS]
    assert all(part.attributes["vla_serve.request_id"] == "robot-7" for part in parts)
    slack = 5_000_000  # between the two clocks, in ns
    for earlier, later in pairwise(parts):
        assert earlier.start_time <= earlier.end_time <= later.start_time + slack
    assert before - slack <= parts[0].start_time
    assert parts[-1].end_time <= after + slack
    infer = parts[3]
    assert infer.end_time - infer.start_time >= 20_000_000
    assert infer.attributes["vla_serve.batch"] == 1


def test_a_refusal_and_each_item_of_a_batch(memory):
    with (
        PolicyServer(TimedPolicy(SPEC), otlp_endpoint="http://127.0.0.1:4317") as server,
        PolicyClient(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        item = pb.PredictRequest(observation=encode_observation(make_observation(SPEC), SPEC.observation))
        batch = pb.PredictBatchRequest(session_id=client._session, items=[item, item, pb.PredictRequest()])
        PolicyServiceStub(channel).PredictBatch(batch)
        (call,) = spans_of(memory, f"{SERVICE}/PredictBatch")
        name = call.attributes["vla_serve.request_id"]
        found = {s.attributes["vla_serve.request_id"] for s in spans_of(memory, "infer", 2, parent=call)}
        assert found == {f"{name}.0", f"{name}.1"}
        assert call.attributes["rpc.grpc.status"] == "OK"  # of the call: its item has its own
        with pytest.raises(grpc.RpcError):
            PolicyServiceStub(channel).Predict(pb.PredictRequest(session_id="x"))
        (refused,) = spans_of(memory, f"{SERVICE}/Predict")
        assert not refused.status.is_ok
        assert refused.status.description == refused.attributes["rpc.grpc.status"] != "OK"
    spans_of(memory, f"{SERVICE}/HoldSession")  # a client that went ends its span too


@pytest.fixture
def tracer():
    """Of the client's program."""
    return TracerProvider(shutdown_on_exit=False).get_tracer("robot")


def parents(memory, rpc, count):
    return {span.parent and span.parent.span_id for span in spans_of(memory, f"{SERVICE}/{rpc}", count)}


def test_a_clients_calls_are_children_of_the_span_that_it_is_in(memory, tracer):
    observation = make_observation(SPEC)
    with (
        PolicyServer(TimedPolicy(SPEC), otlp_endpoint="http://127.0.0.1:4317") as server,
        PolicyClient(server.address) as alone,
        tracer.start_as_current_span("episode") as episode,
        PolicyClient(server.address) as client,
    ):
        client.reset("go")
        with tracer.start_as_current_span("step") as step:
            client.predict(observation)
            client.predict_batch([observation] * 2)
        (call,) = spans_of(memory, f"{SERVICE}/Predict")
        assert call.context.trace_id == episode.get_span_context().trace_id
        assert parents(memory, "Predict", 1) == {step.get_span_context().span_id}
        assert parents(memory, "PredictBatch", 1) == {step.get_span_context().span_id}
        assert parents(memory, "OpenSession", 2) == {None, episode.get_span_context().span_id}
        assert parents(memory, "ResetSession", 1) == {episode.get_span_context().span_id}
        client.close()
        alone.close()
        # As long as the session: no part of what it happens to begin in.
        assert parents(memory, "HoldSession", 2) == {None}


def test_each_task_of_asyncio_has_its_own_span(memory, tracer):
    async def robot(client, number):
        with tracer.start_as_current_span(f"robot {number}") as span:
            await asyncio.sleep(0.01 * number)
            chunk = await client.predict(make_observation(SPEC), seed=number)
            return chunk.request_id, span.get_span_context().span_id

    async def main():
        async with AsyncPolicyClient(server.address) as client:
            return await asyncio.gather(*(robot(client, number) for number in range(4)))

    with PolicyServer(TimedPolicy(SPEC, 0.05), otlp_endpoint="http://127.0.0.1:4317") as server:
        asked = dict(asyncio.run(main()))
        found = {
            span.attributes["vla_serve.request_id"]: span.parent.span_id
            for span in spans_of(memory, f"{SERVICE}/Predict", 4)
        }
    assert found == asked


def test_a_client_without_opentelemetry_says_nothing_of_it():
    script = """
import sys
sys.modules["opentelemetry"] = None
from vla_serve import PolicyClient
client = PolicyClient("127.0.0.1:1", token="secret")
print(client._metadata)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "(('authorization', 'Bearer secret'),)\n", done.stderr


def test_traces_reach_a_collector():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs vla-serve[otel]")
    from concurrent.futures import ThreadPoolExecutor

    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector

    got = []

    def export(request, context):
        got.extend(s.name for r in request.resource_spans for x in r.scope_spans for s in x.spans)
        return collector.ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        collector.ExportTraceServiceRequest.FromString,
        collector.ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    receiver = grpc.server(ThreadPoolExecutor(1))
    receiver.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"Export": handler})])
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    with (
        PolicyServer(TimedPolicy(SPEC), otlp_endpoint=f"http://127.0.0.1:{port}") as server,
        PolicyClient(server.address) as client,
    ):
        client.predict(make_observation(SPEC))
    receiver.stop(0)
    assert {f"{SERVICE}/Predict", *PARTS} <= set(got)


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("collector", "is no address such as http://127.0.0.1:4317"),
        ("http://127.0.0.1:port", "is no address such as"),
        ("http://203.0.113.7:4317", "is another machine's; that needs https://"),
    ],
)
def test_a_collector_that_cannot_be(endpoint, words):
    with pytest.raises(UserError, match=f"otlp_endpoint: '{endpoint}' {words}"):
        exporting_to(endpoint, SERVICE)


class Stuck(SpanExporter):
    """Sends to a collector that answers nothing, until it is told to give up."""

    def __init__(self):
        self.over, self.told = threading.Event(), False

    def export(self, spans):
        self.told = self.over.wait(20)
        return SpanExportResult.FAILURE

    def shutdown(self):
        self.over.set()


def test_a_collector_that_is_gone_keeps_no_server_from_ending(monkeypatch):
    monkeypatch.setattr(tracing, "FLUSH_S", 0.1)
    exporter, provider = Stuck(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    ended = Tracing(provider, SERVICE, exporter)
    provider.get_tracer("test").start_span("left over").end()
    ended.close()
    assert exporter.told
