"""Mutated, truncated and random frames to every RPC of a server: whoever sends them is told so, alone."""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections import Counter

import grpc
import numpy as np
import pytest
from vla_core.types import Observation
from vla_serve import PolicyClient, PolicyServer
from vla_serve.messages.observation_codec import encode_observation
from vla_serve.messages.spec_codec import encode_action_spec, encode_observation_spec
from vla_serve.server import SERVICE
from vla_serve.testing import ToyPolicy, until
from vla_serve.v1 import policy_pb2 as pb

CLIENTS_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
INTERNAL = grpc.StatusCode.INTERNAL.value[0]
POLICY = ToyPolicy()
SPEC = POLICY.specs["toy"]


def look(seed: int) -> Observation:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    return Observation({"top": pixels}, "go left", np.full(1, 0.25, np.float32))


class Frames:
    """Frames for each RPC, made of messages that a client could have sent."""

    def __init__(self, seed: int, session: str, chunk_id: str) -> None:
        self.rng = np.random.default_rng(seed)
        requests = []
        for encoding in ("raw", "png", "jpeg"):
            observation = encode_observation(look(0), SPEC.observation, encoding)
            requests.append(pb.PredictRequest(session_id=session, observation=observation, seed=1, step=2))
        more = pb.PredictRequest(session_id=session, observation=requests[1].observation, step=2)
        more.previous.chunk_id, more.previous.executed_steps, more.previous.delay_steps = chunk_id, 2, 1
        more.view_keys["top"] = "a"
        requests.append(more)
        config = pb.SessionConfig(
            embodiment="toy",
            observation_spec=encode_observation_spec(SPEC.observation),
            action_spec=encode_action_spec(SPEC.action),
        )
        batch = pb.PredictBatchRequest(session_id=session, items=requests[:3])
        report = pb.ExecutedSteps(chunk_id=chunk_id, executed_steps=1)
        self.whole = {
            "Predict": [r.SerializeToString() for r in requests],
            "PredictBatch": [batch.SerializeToString()],
            "StreamActions": [
                pb.StreamActionsRequest(session_id=session, observation=requests[1]).SerializeToString(),
                pb.StreamActionsRequest(session_id=session, executed=report).SerializeToString(),
            ],
            "OpenSession": [pb.OpenSessionRequest(config=config).SerializeToString()],
            "CheckCompatibility": [pb.CheckCompatibilityRequest(config=config).SerializeToString()],
            "HoldSession": [pb.HoldSessionRequest(session_id=session).SerializeToString()],
            "GetPolicyContract": [pb.GetPolicyContractRequest(embodiment="toy").SerializeToString()],
        }
        self.names = list(self.whole)
        self.weights = np.array([8, 2, 3, 2, 2, 1, 1]) / 19

    def next(self) -> tuple[str, bytes]:
        """An RPC and a frame for it."""
        name = str(self.rng.choice(self.names, p=self.weights))
        if self.rng.random() < 0.1:
            return name, self.rng.bytes(int(self.rng.integers(0, 300)))
        whole = self.whole[name]
        return name, self._mutated(bytearray(whole[self.rng.integers(len(whole))]))

    def _mutated(self, data: bytearray) -> bytes:
        rng = self.rng
        # The fields stand at a message's start and end, and pixels between.
        window = min(200, len(data)) if rng.random() < 0.8 else len(data)
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(window))
            if rng.random() < 0.3:
                at = len(data) - 1 - at
            kind = rng.integers(4)
            if kind == 0:
                data[at] = rng.integers(256)
            elif kind == 1:
                data[at] ^= 1 << int(rng.integers(8))
            elif kind == 2:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
            elif len(data) - window > 1:
                del data[at : at + 1]
        if rng.random() < 0.15:
            del data[rng.integers(len(data)) :]
        return bytes(data)


class Sender:
    """Sends frames and takes what comes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._unary = {
            name: channel.unary_unary(f"/{SERVICE}/{name}")
            for name in ("Predict", "PredictBatch", "OpenSession", "CheckCompatibility", "GetPolicyContract")
        }
        self._close = channel.unary_unary(f"/{SERVICE}/CloseSession")
        self._hold = channel.unary_stream(f"/{SERVICE}/HoldSession")
        self._stream = channel.stream_stream(f"/{SERVICE}/StreamActions")
        self.codes: Counter[tuple[str, str]] = Counter()
        self.slowest_s = 0.0

    def send(self, name: str, frame: bytes) -> None:
        """One frame; an assertion fails for an answer that no client should get."""
        start = time.monotonic()
        try:
            code, failures = grpc.StatusCode.OK, self._call(name, frame)
        except grpc.RpcError as error:
            code, failures = error.code(), []
        self.slowest_s = max(self.slowest_s, time.monotonic() - start)
        self.codes[name, code.name] += 1
        assert code in {grpc.StatusCode.OK, *CLIENTS_FAULT}, (name, frame)
        assert INTERNAL not in failures, (name, frame)

    def _call(self, name: str, frame: bytes) -> list[int]:
        """Codes of what was refused within the answer."""
        if name == "HoldSession":
            held = self._hold(frame, timeout=10)
            next(held)
            held.cancel()
            return []
        if name == "StreamActions":
            answers = self._stream(iter([frame]), timeout=10)
            return [pb.StreamActionsResponse.FromString(a).failure.code for a in answers]
        reply = self._unary[name](frame, timeout=10)
        if name == "OpenSession":
            session = pb.OpenSessionResponse.FromString(reply).session_id
            self._close(pb.CloseSessionRequest(session_id=session).SerializeToString(), timeout=10)
        if name == "PredictBatch":
            return [result.failure.code for result in pb.PredictBatchResponse.FromString(reply).results]
        return []


class Log(logging.Handler):
    """Keeps what should not be in a log, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR or record.exc_info or "\n" in text:
            self.bad.append(text)


@pytest.fixture
def log(monkeypatch):
    logger, handler = logging.getLogger("vla_serve"), Log()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.INFO)
    return handler


def fuzz(count: int, seed: int, log: Log) -> tuple[Sender, float, int]:
    """Send ``count`` frames; the sender, its seconds, and how many KiB the process grew."""
    goods = [look(n) for n in range(3)]
    with (
        PolicyServer(POLICY) as server,
        grpc.insecure_channel(server.address) as channel,
        PolicyClient(server.address) as client,
        PolicyClient(server.address) as victim,
    ):
        good = [client.predict(o, seed=5).actions for o in goods]
        chunk_id = victim.predict(look(0), seed=5, step=0).chunk_id
        frames, sender = Frames(seed, victim._session, chunk_id), Sender(channel)
        for _ in range(30):  # what is made once, is made
            sender.send(*frames.next())
        threads, memory = threading.active_count(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        for number in range(count):
            sender.send(*frames.next())
            if number % 50 == 0:
                which = number // 50 % 3
                np.testing.assert_array_equal(client.predict(goods[which], seed=5).actions, good[which])
        took = time.monotonic() - start
        assert server.engine.pending == 0
        until(lambda: server._in_flight.requests == server._in_flight.bytes == 0)
        until(lambda: {s.holds for s in server.sessions._sessions.values()} == {1})
        assert len(server.sessions) == 2
        until(lambda: threading.active_count() <= threads)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert not log.bad
    return sender, took, grown


def test_fuzzed_frames_are_the_senders_mistake(log):
    sender, _, _ = fuzz(300, 0, log)
    codes = {code for _, code in sender.codes}
    assert {"OK", "INVALID_ARGUMENT"} <= codes
    assert {name for name, _ in sender.codes} == set(Frames(0, "", "").names)


@pytest.mark.slow
def test_10_000_fuzzed_frames_are_the_senders_mistake(log):
    """Says in its log what docs/reliability.md says."""
    sender, took, grown = fuzz(10_000, 1, log)
    assert sum(sender.codes.values()) == 10_030
    assert grown < 64 * 1024
    codes: Counter[str] = Counter()
    for (_, code), number in sender.codes.items():
        codes[code] += number
    logging.getLogger("fuzz").warning(
        "%s in %.1f s, slowest %.0f ms, %d KiB more", dict(codes), took, 1000 * sender.slowest_s, grown
    )
