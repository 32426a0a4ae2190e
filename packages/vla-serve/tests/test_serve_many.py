"""Several chunks by one call, a stream of observations, and all differences of a handshake at once."""

from __future__ import annotations

import asyncio
import queue
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
from vla_core.specs import CameraSpec
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyBusy, PolicyClient, PolicyClientError, PolicyServer, PolicyTimeout, SessionLost
from vla_serve.clients.errors import from_failure
from vla_serve.host.loop import run
from vla_serve.messages.observation_codec import encode_observation
from vla_serve.rpcs.many import _Stream
from vla_serve.rpcs.predicting import Caller, Predictor
from vla_serve.rpcs.rpc import Rpcs
from vla_serve.testing import GatedPolicy, TimedPolicy, ToyPolicy, until
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

SPEC = make_spec(1)


@pytest.fixture
def timed():
    policy = TimedPolicy(SPEC)
    with PolicyServer(policy) as server:
        policy.runs.clear()
        yield policy, server


def message(number: int = 0) -> pb.PredictRequest:
    observation = encode_observation(make_observation(SPEC, number), SPEC.observation)
    return pb.PredictRequest(observation=observation, seed=number)


# PredictBatch


def test_a_batch_is_answered_as_its_items_alone(timed):
    policy, server = timed
    seen = [make_observation(SPEC, i) for i in range(11)]
    with PolicyClient(server.address) as client:
        alone = [client.predict(o, seed=i) for i, o in enumerate(seen)]
        policy.runs.clear()
        together = client.predict_batch(seen, range(11))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        assert one.revision == other.revision
        assert other.revision.policy == "default"
        assert other.revision.revision == "1"
    # In batches: 11 rows and what fills them up. On a busy machine the first starts before the rest is there.
    assert sum(rows for rows, _ in policy.runs) <= 3 * 8
    assert len(policy.runs) < 11
    assert len({chunk.request_id for chunk in together}) == 11


def test_a_bad_item_costs_no_other_its_answer(timed):
    _, server = timed
    seen = [make_observation(SPEC, i) for i in range(4)]
    seen[1] = replace(seen[1], images={})  # found by the client
    with PolicyClient(server.address) as client, grpc.insecure_channel(server.address) as channel:
        results = client.predict_batch(seen, range(4))
        assert [type(r).__name__ for r in results] == [
            "ServedChunk", "PolicyClientError", "ServedChunk", "ServedChunk"
        ]  # fmt: skip
        assert "observation.images[camera_0]" in results[1].fields
        items = [message(0), message(1), message(2)]
        items[1].observation.ClearField("state")
        items[2].session_id = "nope"
        request = pb.PredictBatchRequest(session_id=client._session, items=items)
        reply = PolicyServiceStub(channel).PredictBatch(request, timeout=10)
    assert [r.WhichOneof("result") for r in reply.results] == ["answer", "failure", "failure"]
    bad = from_failure(reply.results[1].failure, "here")
    assert isinstance(bad, PolicyClientError)
    assert "observation.state" in bad.fields
    assert isinstance(from_failure(reply.results[2].failure, "here"), SessionLost)


def test_items_beyond_the_queue_are_refused_with_a_time_to_come_back():
    with (
        PolicyServer(TimedPolicy(SPEC, 0.2), max_queue=1, max_batch=1) as server,
        PolicyClient(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = PolicyServiceStub(channel)
        session = client._session
        calls = [
            stub.PredictBatch.future(
                pb.PredictBatchRequest(session_id=session, items=[message(), message()]), timeout=20
            )
            for _ in range(3)
        ]
        results = [result for call in calls for result in call.result().results]
        refused = [r.failure for r in results if r.WhichOneof("result") == "failure"]
        assert 0 < len(refused) < 6
        assert all(from_failure(failure, "here").retry_after_s > 0 for failure in refused)
        assert all(isinstance(from_failure(failure, "here"), PolicyBusy) for failure in refused)
        with pytest.raises(grpc.RpcError, match="items: 3, expected 1 to 2"):
            stub.PredictBatch(pb.PredictBatchRequest(session_id=session, items=[message()] * 3), timeout=10)
        # The client keeps to what the server takes.
        chunks = client.predict_batch([make_observation(SPEC, i) for i in range(5)], range(5))
        assert [c.actions[0, 0] // 1 for c in chunks if not isinstance(c, Exception)]


def test_what_is_late_costs_the_others_nothing():
    with PolicyServer(TimedPolicy(SPEC, 0.8), max_batch=1) as server, PolicyClient(server.address) as client:
        results = client.predict_batch([make_observation(SPEC)] * 4, timeout_s=2.3)
    done = [r for r in results if not isinstance(r, Exception)]
    assert 1 <= len(done) <= 2
    assert all(isinstance(r, (PolicyTimeout, PolicyBusy)) for r in results if isinstance(r, Exception))


def test_a_large_batch_goes_in_several_calls_and_one_run():
    spec = make_spec(1, height=256, width=256)
    policy = TimedPolicy(spec, 0.02)
    with PolicyServer(policy, max_batch=32) as server, PolicyClient(server.address) as client:
        seen = [make_observation(spec, i) for i in range(32)]
        results = client.predict_batch(seen, range(32))
        assert client._limits.max_batch_bytes < 32 * 256 * 256 * 3
    assert [r.actions[0, 0] for r in results] == pytest.approx(
        [i + float(o.state.mean()) for i, o in enumerate(seen)], abs=1e-4
    )


def test_numbers_of_seeds_and_steps_are_checked(timed):
    with PolicyClient(timed[1].address) as client:
        with pytest.raises(PolicyClientError, match="seeds: 1 for 2 observations"):
            client.predict_batch([make_observation(SPEC)] * 2, [1])
        assert client.predict_batch([]) == []


# CheckCompatibility


def test_all_differences_at_once(timed):
    _, server = timed
    camera = SPEC.observation.cameras[0]
    group = SPEC.action.groups[0]
    sends = replace(
        SPEC.observation,
        cameras=(CameraSpec("extra", 8, 8), replace(camera, height=camera.height + 1)),
        state=(),
    )
    takes = replace(
        SPEC.action, groups=(replace(group, unit="mile"), *SPEC.action.groups[1:]), control_hz=7.0, horizon=1
    )
    client = PolicyClient(server.address, observation_spec=sends, action_spec=takes, real_time_chunking=True)
    found = {d.field: d for d in client.check_compatibility()}
    state = SPEC.observation.state[0].name
    assert set(found) == {
        f"observation.cameras[{camera.name}].height",
        "observation.cameras[extra]",
        f"observation.state[{state}]",
        *(f"observation.state[{g.name}]" for g in SPEC.observation.state),
        f"action.groups[{group.name}].unit",
        "action.control_hz",
        "real_time_chunking",
    }
    height = found[f"observation.cameras[{camera.name}].height"]
    assert (height.policy, height.client) == (str(camera.height), str(camera.height + 1))
    assert "the policy has none" in found["observation.cameras[extra]"].description
    client.close()


def test_no_difference_is_what_a_session_accepts(timed):
    _, server = timed
    with PolicyClient(server.address, observation_spec=SPEC.observation, action_spec=SPEC.action) as client:
        assert client.check_compatibility() == []
    reversed_ = replace(make_spec(2).observation, cameras=make_spec(2).observation.cameras[::-1])
    with PolicyServer(TimedPolicy(make_spec(2))) as other:
        client = PolicyClient(other.address, observation_spec=reversed_)
        (only,) = client.check_compatibility()
        assert only.field == "observation.cameras (order)"
        client.close()


# StreamActions


class Stream:
    """The client's half, by hand."""

    def __init__(self, stub: PolicyServiceStub) -> None:
        self._out: queue.Queue[pb.StreamActionsRequest | None] = queue.Queue()
        self.call = stub.StreamActions(iter(self._out.get, None), timeout=20)

    def send(self, **fields) -> None:
        self._out.put(pb.StreamActionsRequest(**fields))

    def end(self) -> None:
        self._out.put(None)


@pytest.fixture
def stub(timed):
    with grpc.insecure_channel(timed[1].address) as channel:
        yield PolicyServiceStub(channel)


def test_a_stream_answers_every_observation_and_a_bad_one_ends_nothing(timed, stub):
    session = stub.OpenSession(pb.OpenSessionRequest()).session_id
    stream = Stream(stub)
    stream.send(session_id=session)
    for number in range(1, 6):
        request = message(number)
        if number == 3:
            request.observation.ClearField("images")
        stream.send(request_id=number, observation=request)
    stream.send(request_id=9, session_id="another", observation=message())
    stream.end()
    got = {response.request_id: response for response in stream.call}
    assert sorted(got) == [1, 2, 3, 4, 5, 9]
    for number in (1, 2, 4, 5):
        values = np.frombuffer(got[number].answer.actions.data, np.float32)
        assert values[0] == np.float32(number + make_observation(SPEC, number).state.mean())
    assert "observation.images" in got[3].failure.message
    assert "a stream is of one session" in got[9].failure.message


def test_reports_drop_what_is_past_and_forget_older_chunks():
    horizon = ToyPolicy().specs["toy"].action.horizon
    policy = GatedPolicy(make_spec(1, horizon=horizon))
    spec = next(iter(policy.specs.values()))
    with (
        PolicyServer(policy, max_batch=1) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = PolicyServiceStub(channel)
        session = stub.OpenSession(pb.OpenSessionRequest()).session_id
        observation = encode_observation(make_observation(spec), spec.observation)
        stream = Stream(stub)

        def ask(number: int, step: int) -> None:
            request = pb.PredictRequest(observation=observation, step=step)
            stream.send(session_id=session, request_id=number, observation=request)

        ask(1, 0)
        first = next(stream.call)
        ask(2, 0)
        second = next(stream.call).answer.chunk_id
        policy.gate.clear()
        for number, step in ((3, 1), (4, 2), (5, 3)):  # one runs, two wait
            ask(number, step)
            until(lambda pending=number - 2: server.engine.pending == pending)
            until(lambda waiting=number - 3: server.engine.waiting == waiting)
        report = pb.ExecutedSteps(chunk_id=second, executed_steps=horizon, step=2 + horizon)
        stream.send(request_id=6, executed=report)
        stream.send(request_id=7, executed=pb.ExecutedSteps(chunk_id=first.answer.chunk_id))
        stream.send(request_id=8, executed=pb.ExecutedSteps(chunk_id=second, executed_steps=horizon + 1))
        stream.send(request_id=9, executed=pb.ExecutedSteps(chunk_id=second, step=1))
        stream.end()
        until(lambda: server.engine.waiting == 1)  # the one that was past is gone
        policy.gate.set()
        got = {response.request_id: response for response in stream.call}
    assert sorted(got) == [3, 4, 5, 7, 8, 9]  # a good report is not answered
    assert got[3].WhichOneof("result") == got[5].WhichOneof("result") == "answer"
    assert got[4].failure.code == grpc.StatusCode.ABORTED.value[0]
    assert "executed.chunk_id: no chunk" in got[7].failure.message
    assert "executed.executed_steps: " in got[8].failure.message
    assert "executed.step: 1 after" in got[9].failure.message


def test_a_stream_keeps_to_the_limits_and_holds_its_session():
    policy = GatedPolicy(SPEC, 0.2)
    with (
        PolicyServer(policy, max_in_flight=2, max_batch=1) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = PolicyServiceStub(channel)
        session = stub.OpenSession(pb.OpenSessionRequest()).session_id
        stream = Stream(stub)
        policy.gate.clear()
        for number in range(5):
            stream.send(session_id=session, request_id=number, observation=message())
        stream.send(session_id=session, request_id=5, observation=message(), timeout_s=0.01)
        got = [next(stream.call) for _ in range(4)]
        policy.gate.set()
        got += [next(stream.call) for _ in range(2)]
        kinds = [response.WhichOneof("result") for response in got]
        assert kinds.count("answer") == 2
        assert {r.failure.code for r in got if r.WhichOneof("result") == "failure"} == {
            grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        }
        stream.send(request_id=7, observation=message(), timeout_s=0.02)
        late = next(stream.call)
        assert late.WhichOneof("result") == "failure"
        (held,) = server.sessions._sessions.values()
        assert held.holds == 1
        stream.call.cancel()
        until(lambda: held.lost)
        until(lambda: server._in_flight.requests == 0)
        assert server._in_flight.bytes == 0


def test_a_message_whose_stream_ends_in_the_same_moment_leaves_its_place(timed):
    _, server = timed

    async def take_and_cancel(session_id):
        caller = Caller("", "robot-7", time.monotonic(), None)
        predictor = Predictor(server.shelf, server.sessions, None, 4)
        stream = _Stream(predictor, Rpcs(server._in_flight), session_id, caller, "peer")
        await stream._take(pb.StreamActionsRequest(request_id=1, observation=message()))
        assert server._in_flight.requests == 1
        stream.cancel()
        await asyncio.sleep(0.05)

    with PolicyClient(server.address) as client:
        run(take_and_cancel(client._session))
    until(lambda: server._in_flight.requests == server._in_flight.bytes == server._in_flight.pixels == 0)


def test_a_reader_that_stopped_is_not_read_from():
    """What it is owed would grow without bound."""
    spec = make_spec(1, horizon=20_000)  # half a MB an answer
    policy = TimedPolicy(spec)
    observation = encode_observation(make_observation(spec), spec.observation)
    with (
        PolicyServer(policy, max_in_flight=4) as server,
        grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", -1)]) as channel,
    ):
        policy.runs.clear()
        stub = PolicyServiceStub(channel)
        session = stub.OpenSession(pb.OpenSessionRequest()).session_id

        def flood():
            for number in range(500):
                request = pb.PredictRequest(observation=observation)
                yield pb.StreamActionsRequest(session_id=session, request_id=number, observation=request)

        replies = stub.StreamActions(flood(), timeout=60)
        seen = -1
        until(lambda: policy.runs)
        while seen != (seen := sum(rows for rows, _ in policy.runs)):
            time.sleep(0.5)
        assert 0 < seen < 400
        assert server._in_flight.requests <= 4
        assert len([*replies]) == 500  # and when it reads again, nothing was lost


def test_the_first_message_names_the_session(stub):
    stream = Stream(stub)
    stream.send(request_id=1)
    with pytest.raises(grpc.RpcError, match="session_id: missing"):
        next(stream.call)
    stream = Stream(stub)
    stream.send(session_id="nope")
    with pytest.raises(grpc.RpcError, match="no session 'nope'"):
        next(stream.call)
