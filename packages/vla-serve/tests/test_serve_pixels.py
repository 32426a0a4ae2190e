"""Pictures under way are counted as they are when decoded: a small file may be a large picture."""

from __future__ import annotations

import io
import threading
import time

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2 as details_pb
from PIL import Image as PILImage
from vla_core.errors import UserError
from vla_core.specs import ActionSpec, CameraSpec, GroupSpec, ObservationSpec, RobotSpec
from vla_core.types import Observation
from vla_serve import PolicyBusy, PolicyClient, PolicyServer
from vla_serve.messages.status import details_of, find
from vla_serve.testing import TimedPolicy
from vla_serve.v1 import policy_pb2 as pb
from vla_serve.v1 import types_pb2 as types
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub

SIDE = 1000  # a megapixel
SPEC = RobotSpec(
    ObservationSpec((CameraSpec("top", SIDE, SIDE),), ()),
    ActionSpec((GroupSpec("joints", 2, "rad"),), horizon=4, control_hz=10.0),
)
SEEN = Observation({"top": np.zeros((SIDE, SIDE, 3), np.uint8)}, "go", None)


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def rss_mb() -> float:
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


class Gated(TimedPolicy):
    def __init__(self, spec):
        super().__init__(spec)
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, prepared, steps=None):
        assert self.gate.wait(60)
        return super().predict(prepared, steps)


def png_request(session: str, side: int = SIDE) -> pb.PredictRequest:
    buffer = io.BytesIO()
    PILImage.new("RGB", (side, side)).save(buffer, "PNG")
    image = types.Image(encoding=types.IMAGE_ENCODING_PNG, height=side, width=side, data=buffer.getvalue())
    observation = types.Observation(images={"top": image}, instruction="go")
    return pb.PredictRequest(session_id=session, observation=observation)


def test_sixty_large_pictures_in_small_files_at_once():
    """Sixty sessions, so that all would be decoded ahead of the model."""
    policy, most = Gated(SPEC), 8
    with (
        PolicyServer(policy, max_in_flight_mpx=most) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = PolicyServiceStub(channel)
        opened = [stub.OpenSession(pb.OpenSessionRequest()) for _ in range(60)]
        assert opened[0].limits.max_in_flight_pixels == most * 10**6
        requests = [png_request(reply.session_id) for reply in opened]
        assert requests[0].ByteSize() < 2**14
        stub.Predict(requests[0])
        before = rss_mb()
        policy.gate.clear()
        calls = [stub.Predict.future(request, timeout=60) for request in requests]
        until(lambda: sum(call.done() for call in calls) == len(calls) - most)
        assert server._in_flight.pixels == most * SIDE**2
        grown = rss_mb() - before
        policy.gate.set()
        refused = [call for call in calls if call.code() is not grpc.StatusCode.OK]
        assert len(refused) == len(calls) - most
        for call in refused:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert find(details_of(call), details_pb.RetryInfo).retry_delay.ToMilliseconds() > 0
            assert find(details_of(call), details_pb.ErrorInfo).reason == "TOO_MANY_PIXELS"
        until(lambda: server._in_flight.pixels == 0)
        assert grown < 100  # 180 MB if all were decoded
        stub.Predict(requests[0])


def test_one_message_over_the_limit_is_the_clients_mistake():
    with (
        PolicyServer(TimedPolicy(SPEC), max_in_flight_mpx=2) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = PolicyServiceStub(channel)
        session = stub.OpenSession(pb.OpenSessionRequest()).session_id
        item = png_request("")
        batch = pb.PredictBatchRequest(session_id=session, items=[item] * 2)
        assert len(stub.PredictBatch(batch).results) == 2
        batch.items.append(item)
        huge = png_request(session, 1)
        huge.observation.images["top"].height = huge.observation.images["top"].width = 2**31
        for method, request, field, words in (
            (stub.PredictBatch, batch, "images", "3000000 pixels in one message"),
            (stub.Predict, huge, "observation.images[top]", "expected 1000 x 1000"),
        ):
            with pytest.raises(grpc.RpcError, match=words) as caught:
                method(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            (violation,) = find(details_of(caught.value), details_pb.BadRequest).field_violations
            assert violation.field == field
        assert server._in_flight.pixels == 0


def test_a_client_splits_its_batch_and_is_told_to_come_back():
    policy = Gated(SPEC)
    with (
        PolicyServer(policy, max_in_flight_mpx=3) as server,
        PolicyClient(server.address) as client,
        PolicyClient(server.address, timeout_s=60) as other,
    ):
        assert len(client.predict_batch([SEEN] * 7, seeds=range(7))) == 7
        for number, chunk in enumerate(client.predict_batch([SEEN] * 7, seeds=range(7))):
            assert chunk.actions[0, 0] == number
        policy.gate.clear()
        threads = [threading.Thread(target=other.predict_batch, args=([SEEN] * 3,))]
        threads[0].start()
        until(lambda: server._in_flight.pixels == 3 * SIDE**2)
        with pytest.raises(PolicyBusy, match="max_in_flight_mpx") as caught:
            client.predict(SEEN)
        assert caught.value.retry_after_s > 0
        policy.gate.set()
        threads[0].join()
        client.predict(SEEN)


def test_a_contract_that_does_not_fit_is_an_error_of_the_start():
    two = RobotSpec(
        ObservationSpec((CameraSpec("a", 1000, 1000), CameraSpec("b", 1000, 1000)), ()), SPEC.action
    )
    with pytest.raises(UserError, match="max_in_flight_mpx: one observation has 2 megapixels"):
        PolicyServer(TimedPolicy(two), max_in_flight_mpx=1)
