"""A chunk that is continued over the wire: what the policy is given, what comes back, and what is refused."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from vla_core.testing import make_observation, make_spec
from vla_core.types import ActionChunk
from vla_serve import HandshakeError, PolicyClient, PolicyClientError, PolicyServer, PolicyServerError
from vla_serve.engine.kept_chunks import CHUNKS_KEPT
from vla_serve.messages.observation_codec import encode_observation
from vla_serve.messages.status import details_of, find
from vla_serve.v1 import policy_pb2
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

HORIZON = 6


class KeepingPolicy:
    """Draws a chunk from the seed, and keeps the frozen steps; ``forgets`` breaks that."""

    framework = "Keeping"

    def __init__(self, spec) -> None:
        self.specs = {spec.embodiment: spec}
        self.previous: list = []
        self.forgets = False
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()

    def longest_delay(self, embodiment):
        return 4

    def act(self, observations, seeds, steps=None, previous=None):
        self.running.set()
        assert self.gate.wait(20)
        (seed,), (left,) = seeds, previous or [None]
        self.previous.append(left)
        spec = self.specs[observations[0].embodiment].action
        actions = np.random.default_rng(seed).normal(size=(spec.horizon, spec.dim)).astype(np.float32)
        if left is not None and not self.forgets:
            actions[: left.n_frozen] = left.actions[: left.n_frozen]
        return [ActionChunk(actions, spec)]


@pytest.fixture
def spec():
    return make_spec(horizon=HORIZON)


@pytest.fixture
def policy(spec):
    return KeepingPolicy(spec)


@pytest.fixture
def server(policy):
    with PolicyServer(policy, max_queue=2) as running:
        policy.previous.clear()
        yield running
        policy.gate.set()


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield PolicyServiceStub(channel)


@pytest.fixture
def client(server):
    with PolicyClient(server.address, real_time_chunking=True) as opened:
        yield opened


def test_the_answer_begins_with_what_is_executed_meanwhile(client, policy, spec):
    first = client.predict(make_observation(spec, 0), seed=1, step=0)
    assert (first.frozen_steps, first.spec) == (0, spec.action)
    second = client.predict(make_observation(spec, 1), seed=2, step=3, previous=first.after(3, 2))
    np.testing.assert_array_equal(second.actions[:2], first.actions[3:5])
    assert second.frozen_steps == 2
    assert second.chunk_id != first.chunk_id
    # Steps are counted from an observation: of the second chunk's, two were executed from the first.
    third = client.predict(make_observation(spec, 2), seed=3, step=7, previous=second.after(4, 2))
    np.testing.assert_array_equal(third.actions[:2], second.actions[4:])
    given = policy.previous
    assert given[0] is None
    np.testing.assert_array_equal(given[1].actions, first.actions[3:])
    np.testing.assert_array_equal(given[2].actions, second.actions[4:])
    assert [left.n_frozen for left in given[1:]] == [2, 2]


def test_a_request_may_be_sent_again(client, spec):
    first = client.predict(make_observation(spec), seed=1, step=0)
    again = [client.predict(make_observation(spec), seed=2, step=2, previous=first.after(2, 1)) for _ in "ab"]
    np.testing.assert_array_equal(again[0].actions, again[1].actions)
    # The first answer may have been lost on the way: the chunk it continued is still there, and so is each.
    for chunk in again:
        client.predict(make_observation(spec), step=3, previous=chunk.after(1, 1))


def test_sessions_do_not_know_each_others_chunks(server, client, spec):
    chunk = client.predict(make_observation(spec), step=0)
    with PolicyClient(server.address) as other, pytest.raises(PolicyClientError, match="no chunk"):
        other.predict(make_observation(spec), step=1, previous=chunk.after(1, 1))


def test_a_reset_forgets(client, spec):
    chunk = client.predict(make_observation(spec), step=0)
    client.reset()
    with pytest.raises(PolicyClientError, match="from before the reset"):
        client.predict(make_observation(spec), step=1, previous=chunk.after(1, 1))


def test_an_answer_that_crosses_a_reset_is_of_no_episode(stub, policy, spec):
    session = stub.OpenSession(policy_pb2.OpenSessionRequest()).session_id
    observation = encode_observation(make_observation(spec), spec.observation)
    policy.gate.clear()
    policy.running.clear()
    answer = stub.Predict.future(
        policy_pb2.PredictRequest(session_id=session, observation=observation, step=5)
    )
    assert policy.running.wait(10)
    stub.ResetSession(policy_pb2.ResetSessionRequest(session_id=session))
    policy.gate.set()
    crossed = policy_pb2.PreviousChunk(chunk_id=answer.result(10).chunk_id, executed_steps=1, delay_steps=1)
    request = policy_pb2.PredictRequest(session_id=session, observation=observation, step=6, previous=crossed)
    with pytest.raises(grpc.RpcError, match=r"previous\.chunk_id: no chunk"):
        stub.Predict(request, timeout=10)


def test_old_chunks_go(client, spec):
    chunks = [client.predict(make_observation(spec), step=0) for _ in range(CHUNKS_KEPT + 1)]
    client.predict(make_observation(spec), step=1, previous=chunks[1].after(1, 1))
    with pytest.raises(PolicyClientError, match=f"older than the last {CHUNKS_KEPT}"):
        client.predict(make_observation(spec), step=1, previous=chunks[0].after(1, 1))


def test_other_sessions_change_nothing(server, policy, spec):
    """What two robots get while they take turns is what each gets alone."""

    def drive(clients):
        chunks = [client.predict(make_observation(spec, i), i, step=0) for i, client in enumerate(clients)]
        for turn in range(1, 4):
            chunks = [
                client.predict(
                    make_observation(spec, 10 * turn + i),
                    10 * turn + i,
                    step=2 * turn,
                    previous=c.after(2, 1),
                )
                for i, (client, c) in enumerate(zip(clients, chunks, strict=True))
            ]
        return [chunk.actions for chunk in chunks]

    with PolicyClient(server.address) as one, PolicyClient(server.address) as two:
        together = drive([one, two])
    with PolicyClient(server.address) as alone:
        np.testing.assert_array_equal(drive([alone])[0], together[0])


def test_offsets_from_the_state_are_seen_from_the_state_of_now(spec):
    groups = tuple(
        replace(g, representation="relative") if g.name == "position" else g for g in spec.action.groups
    )
    spec = replace(spec, action=replace(spec.action, groups=groups))
    policy = KeepingPolicy(spec)
    then, now = make_observation(spec, 0), make_observation(spec, 1)
    with PolicyServer(policy) as server, PolicyClient(server.address, real_time_chunking=True) as client:
        first = client.predict(then, seed=0, step=0)
        second = client.predict(now, seed=1, step=2, previous=first.after(2, 3))
    place = first.actions[2:, :3] + then.state[:3]
    np.testing.assert_allclose(policy.previous[-1].actions[:, :3] + now.state[:3], place, atol=1e-6)
    np.testing.assert_array_equal(policy.previous[-1].actions[:, 3:], first.actions[2:, 3:])
    np.testing.assert_array_equal(second.actions[:3], policy.previous[-1].actions[:3])


def test_offsets_that_cannot_be_carried_over(spec):
    groups = tuple(replace(g, representation="relative", unit="1") for g in spec.action.groups)
    policy = KeepingPolicy(replace(spec, action=replace(spec.action, groups=groups)))
    with PolicyServer(policy) as server:
        with (
            pytest.raises(HandshakeError, match="action group 'position' is an offset"),
            PolicyClient(server.address, real_time_chunking=True),
        ):
            pass
        with PolicyClient(server.address) as client:
            assert client.max_delay_steps is None
            chunk = client.predict(make_observation(spec), step=0)
            with pytest.raises(PolicyClientError, match=r"previous: .* action group 'position'"):
                client.predict(make_observation(spec), step=1, previous=chunk.after(1, 1))


def test_a_policy_that_cannot_is_refused_at_the_handshake_or_the_first_request(spec):
    class Plain:
        framework, specs = "Plain", {"default": spec}

        def act(self, observations, seeds, steps=None):
            return [ActionChunk(np.zeros((HORIZON, 7), np.float32), spec.action)]

    with PolicyServer(Plain()) as server:
        with (
            pytest.raises(HandshakeError) as caught,
            PolicyClient(server.address, real_time_chunking=True),
        ):
            pass
        assert list(caught.value.fields) == ["config.real_time_chunking"]
        assert "a Plain cannot keep the start of an earlier chunk" in str(caught.value)
        with PolicyClient(server.address) as client:
            chunk = client.predict(make_observation(spec), step=0)
            with pytest.raises(PolicyClientError, match=r"previous: .* a Plain cannot keep"):
                client.predict(make_observation(spec), step=1, previous=chunk.after(1, 1))
            with pytest.raises(PolicyClientError, match="view_keys: given, but a Plain computes nothing"):
                client.predict(make_observation(spec), view_keys={"camera_0": "cell"})


def test_a_policy_that_forgets_what_is_frozen_never_reaches_a_robot(client, policy, spec, caplog):
    chunk = client.predict(make_observation(spec), seed=1, step=0)
    policy.forgets = True
    with pytest.raises(PolicyServerError, match="the server failed"):
        client.predict(make_observation(spec), seed=2, step=1, previous=chunk.after(1, 2))
    assert "did not keep the 2 frozen steps" in caplog.text


BAD = {
    "unknown": ({"chunk_id": "nope"}, "previous.chunk_id", "no chunk 'nope'"),
    "no chunk": ({"chunk_id": ""}, "previous.chunk_id", "no chunk ''"),
    "delay left out": ({"delay_steps": None}, "previous.delay_steps", "missing"),
    "executed left out": ({"executed_steps": None}, "previous.executed_steps", "missing"),
    "nothing left": (
        {"executed_steps": 6, "step": 6},
        "previous.executed_steps",
        "leave nothing to continue",
    ),
    "executed beyond": (
        {"executed_steps": 700, "step": 700},
        "previous.executed_steps",
        "700 of the chunk's 6",
    ),
    "executed miscounted": ({"executed_steps": 1}, "previous.executed_steps", "step 2 comes 2 after step 0"),
    "no step": ({"step": None}, "step", "missing"),
    "delay of a horizon": (
        {"delay_steps": 6},
        "previous.delay_steps",
        "6, but 4 of the chunk's 6 steps are left",
    ),
    "delay beyond what is left": ({"delay_steps": 5}, "previous.delay_steps", "request earlier"),
    "delay beyond the policy": (
        {"delay_steps": 5, "executed_steps": 0, "step": 0},
        "previous.delay_steps",
        "this policy bridges at most 4 of 6 steps",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_continuation_is_named(stub, policy, spec, case):
    changes, field, words = BAD[case]
    session = stub.OpenSession(policy_pb2.OpenSessionRequest()).session_id
    observation = encode_observation(make_observation(spec), spec.observation)
    asks = partial(policy_pb2.PredictRequest, session_id=session, observation=observation)
    fields = {
        "chunk_id": stub.Predict(asks(step=0)).chunk_id,
        "executed_steps": 2,
        "delay_steps": 1,
        "step": 2,
    }
    fields.update(changes)
    step = fields.pop("step")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(asks(step=step, previous=policy_pb2.PreviousChunk(**fields)), timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violation = find(details_of(caught.value), error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == field
    assert words in violation.description
    assert policy.previous == [None]  # the policy was not asked


def test_a_chunk_without_a_step_cannot_be_continued(client, spec):
    chunk = client.predict(make_observation(spec))
    with pytest.raises(PolicyClientError, match=r"previous\.chunk_id: .*had no step"):
        client.predict(make_observation(spec), step=1, previous=chunk.after(1, 1))


@pytest.mark.parametrize("number", [-1, 0.5])
def test_the_client_sends_no_nonsense(client, spec, number):
    chunk = client.predict(make_observation(spec), step=0)
    with pytest.raises(PolicyClientError, match=r"previous\.delay_steps: .* is no whole number in 0 to"):
        client.predict(make_observation(spec), step=1, previous=chunk.after(1, number))


def test_what_the_policy_bridges_is_told(client, server):
    assert client.max_delay_steps == 4
    with PolicyClient(server.address) as other:
        assert other.max_delay_steps == 4
