"""Every field, as a client that does not check its own input would send it."""

from __future__ import annotations

import io
import logging
from dataclasses import replace

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from PIL import Image as PILImage
from vla_core.errors import UserError
from vla_core.specs import CameraSpec
from vla_core.testing import make_observation, make_spec
from vla_serve import (
    HandshakeError,
    PolicyClient,
    PolicyClientError,
    PolicyServerError,
    SessionLost,
)
from vla_serve.engine.errors import FieldError
from vla_serve.messages.codec import encode_tensor
from vla_serve.messages.observation_codec import encode_observation
from vla_serve.messages.spec_codec import decode_observation_spec, encode_observation_spec
from vla_serve.messages.status import details_of, find
from vla_serve.v1 import policy_pb2, types_pb2
from vla_serve.v1.policy_pb2_grpc import PolicyServiceStub


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield PolicyServiceStub(channel)


@pytest.fixture
def request_(stub, spec):
    session = stub.OpenSession(policy_pb2.OpenSessionRequest()).session_id
    observation = encode_observation(make_observation(spec), spec.observation)
    return policy_pb2.PredictRequest(session_id=session, observation=observation, seed=1)


def png(height: int, width: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PILImage.new(mode, (width, height)).save(buffer, kind)
    return buffer.getvalue()


def image(data: bytes, encoding: int = types_pb2.IMAGE_ENCODING_PNG, height: int = 32, width: int = 32):
    def change(request):
        request.observation.images["camera_0"].CopyFrom(
            types_pb2.Image(encoding=encoding, height=height, width=width, data=data)
        )

    return change


def state(array, **fields):
    def change(request):
        request.observation.state.CopyFrom(encode_tensor(np.asarray(array)))
        for name, value in fields.items():
            if name == "shape":
                request.observation.state.shape[:] = value
            else:
                setattr(request.observation.state, name, value)

    return change


def geometry(kind: str, camera: str, array):
    return lambda r: getattr(r.observation, kind)[camera].CopyFrom(encode_tensor(np.asarray(array)))


FLOAT7 = np.zeros(7, np.float32)
CAMERA = "observation.images[camera_0]"
RAW = types_pb2.IMAGE_ENCODING_RAW
BAD = {
    "session": (lambda r: setattr(r, "session_id", "nope"), "session_id", "no session 'nope'"),
    "no session": (lambda r: r.ClearField("session_id"), "session_id", "no session ''"),
    "missing camera": (lambda r: r.observation.images.pop("camera_0"), CAMERA, "missing"),
    "unknown camera": (
        lambda r: r.observation.images["wrist"],
        "observation.images[wrist]",
        "no such camera",
    ),
    "no observation": (lambda r: r.ClearField("observation"), "observation.instruction", "empty"),
    "wrong size": (image(b"\0" * 27, RAW, 3, 3), CAMERA, "expected 32 x 32, got 3 x 3"),
    "huge size": (image(b"", RAW, 2**32 - 1, 2**32 - 1), CAMERA, "expected 32 x 32"),
    "byte length": (image(b"\0" * 10, RAW), CAMERA, "needs 3072 bytes, got 10"),
    "no encoding": (image(b"\0" * 3072, 0), CAMERA, "unknown encoding 0"),
    "unknown encoding": (image(b"\0" * 3072, 9), CAMERA, "unknown encoding 9"),
    "not a png": (image(b"junk"), CAMERA, "not a readable PNG"),
    "cut png": (image(png(32, 32)[:-30]), CAMERA, "not a readable PNG"),
    "jpeg called png": (image(png(32, 32, kind="JPEG")), CAMERA, "not a readable PNG"),
    "png of another size": (image(png(64, 32)), CAMERA, "the PNG holds 64 x 32"),
    "png bomb": (image(png(20000, 20000, "1")), CAMERA, "PNG"),
    "grey png": (image(png(32, 32, "L")), CAMERA, "mode L"),
    "not a jpeg": (image(b"\xff\xd8junk", types_pb2.IMAGE_ENCODING_JPEG), CAMERA, "not a readable JPEG"),
    "no state": (
        lambda r: r.observation.ClearField("state"),
        "observation.state",
        "missing; the policy reads 7",
    ),
    "state dim": (state(np.zeros(6, np.float32)), "observation.state", "expected shape [7], got [6]"),
    "state axes": (state(np.zeros((1, 7), np.float32)), "observation.state", "expected shape [7]"),
    "state dtype": (state(np.zeros(7)), "observation.state", "expected float32, got float64"),
    "state bytes": (state(FLOAT7, data=b"\0" * 27), "observation.state", "needs 28 bytes, got 27"),
    "state shape": (state(FLOAT7, shape=[2**62, 2**62]), "observation.state", "bytes, got 28"),
    "state negative": (state(FLOAT7, shape=[-7]), "observation.state", "all >= 0"),
    "state NaN": (state(FLOAT7 * np.nan), "observation.state", "NaN"),
    "state infinite": (state(FLOAT7 + np.inf), "observation.state", "infinity"),
    "depth camera": (
        geometry("depth", "wrist", np.zeros((32, 32), np.float32)),
        "observation.depth[wrist]",
        "no such camera",
    ),
    "depth shape": (
        geometry("depth", "camera_0", np.zeros((3, 3), np.float32)),
        "observation.depth[camera_0]",
        "expected shape",
    ),
    "intrinsics shape": (
        geometry("intrinsics", "camera_0", np.zeros((4, 4), np.float32)),
        "observation.intrinsics[camera_0]",
        "[3, 3]",
    ),
    "extrinsics NaN": (
        geometry("extrinsics", "camera_1", np.full((4, 4), np.nan, np.float32)),
        "observation.extrinsics[camera_1]",
        "NaN",
    ),
    "no instruction": (
        lambda r: setattr(r.observation, "instruction", " "),
        "observation.instruction",
        "empty",
    ),
    "long instruction": (
        lambda r: setattr(r.observation, "instruction", "x" * 5000),
        "observation.instruction",
        "at most 4096",
    ),
    "seed": (lambda r: setattr(r, "seed", 2**63), "seed", "not below 2^63"),
    "no denoise steps": (lambda r: setattr(r, "denoise_steps", 0), "denoise_steps", "outside 1 to 1000"),
    "denoise steps": (lambda r: setattr(r, "denoise_steps", 10**6), "denoise_steps", "outside 1 to 1000"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_field_is_named(stub, request_, policy, case):
    change, field, words = BAD[case]
    change(request_)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request_, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violation = find(details_of(caught.value), error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == field
    assert words in violation.description
    assert "Traceback" not in caught.value.details()
    assert not policy.calls


def test_the_good_request_is_answered(stub, request_):
    assert list(stub.Predict(request_, timeout=10).actions.shape) == [4, 7]


def test_a_client_without_deadline_is_answered(stub, request_):
    assert list(stub.Predict(request_).actions.shape) == [4, 7]


def test_no_state_where_the_policy_has_none(policy, server, spec):
    bare = replace(spec, observation=replace(spec.observation, state=()))
    with pytest.raises(PolicyClientError, match="takes no state"):
        encode_observation_error(make_observation(spec), bare)


def encode_observation_error(observation, spec):
    try:
        encode_observation(observation, spec.observation)
    except UserError as error:
        raise PolicyClientError(str(error)) from error


def test_bytes_that_are_no_message(server):
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/vla_serve.v1.PolicyService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff\xff", timeout=10)
    assert "Traceback" not in caught.value.details()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (
            lambda s: replace(s, observation=replace(s.observation, cameras=s.observation.cameras[::-1])),
            "camera",
        ),
        (lambda s: replace(s, observation=make_spec(3).observation), "observation.cameras"),
        (
            lambda s: replace(s, observation=make_spec(height=16).observation),
            "observation.cameras[camera_0].height",
        ),
        (lambda s: replace(s, observation=replace(s.observation, state=())), "observation.state"),
        (lambda s: replace(s, action=replace(s.action, control_hz=5.0)), "action.control_hz"),
        (lambda s: replace(s, action=replace(s.action, groups=s.action.groups[:2])), "action.groups"),
    ],
)
def test_a_handshake_that_differs_names_the_field(server, spec, change, field):
    other = change(spec)
    with (
        pytest.raises(HandshakeError) as caught,
        PolicyClient(server.address, observation_spec=other.observation, action_spec=other.action),
    ):
        pass
    assert field in str(caught.value)
    assert "the policy has" in str(caught.value)
    assert "the client has" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert any(field in name for name in caught.value.fields)


def test_the_horizon_of_a_single_stepping_client_is_not_compared(server, spec):
    action = replace(spec.action, horizon=1)
    with PolicyClient(server.address, action_spec=action) as client:
        assert client.contract.action.horizon == spec.action.horizon


@pytest.mark.parametrize(
    ("names", "words"),
    [({"policy": "other"}, "config.policy"), ({"embodiment": "defualt"}, "did you mean 'default'")],
)
def test_names_that_are_not_served(server, names, words):
    with pytest.raises(PolicyClientError, match=words), PolicyClient(server.address, **names):
        pass


def test_the_contract_can_be_asked_for(stub):
    reply = stub.GetPolicyContract(policy_pb2.GetPolicyContractRequest(embodiment="default"))
    assert reply.contract.action.horizon == 4
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetPolicyContract(policy_pb2.GetPolicyContractRequest(embodiment="x"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_handshake_of_nonsense(stub):
    config = policy_pb2.SessionConfig()
    config.observation_spec.cameras.add(name="a", height=0, width=3)
    with pytest.raises(grpc.RpcError) as caught:
        stub.OpenSession(policy_pb2.OpenSessionRequest(config=config))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "config.observation_spec.cameras[a].height" in caught.value.details()


def test_a_policy_that_fails_tells_an_id_and_no_more(client, policy, spec, caplog):
    policy.error = RuntimeError("secret /path")
    with caplog.at_level(logging.ERROR), pytest.raises(PolicyServerError) as caught:
        client.predict(make_observation(spec))
    assert "secret" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    request_id = str(caught.value).split("id ")[-1]
    assert f"id={request_id}" in caplog.text
    assert "secret /path" in caplog.text
    policy.error = None
    assert client.predict(make_observation(spec)).actions.shape == (4, 7)


@pytest.mark.parametrize(
    "answer", [np.full((4, 7), np.nan, np.float32), np.zeros((3, 7), np.float32), np.zeros((4, 7))]
)
def test_an_answer_that_breaks_the_contract_reaches_no_robot(client, policy, spec, answer):
    policy.answer = answer
    with pytest.raises(PolicyServerError, match="INTERNAL"):
        client.predict(make_observation(spec))


def test_input_the_policy_refuses_is_the_clients_mistake(client, policy, spec):
    policy.error = UserError("state: outside the workspace")
    with pytest.raises(PolicyClientError, match="outside the workspace"):
        client.predict(make_observation(spec))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"images": {}}, "observation.images[camera_0]"),
        ({"instruction": ""}, "observation.instruction"),
        ({"state": None}, "observation.state"),
        ({"state": np.full(7, np.nan)}, "observation.state"),
        ({"state": np.zeros(8)}, "observation.state"),
        ({"depth": {"camera_0": np.zeros((2, 2))}}, "observation.depth[camera_0]"),
        ({"intrinsics": {"wrist": np.eye(3)}}, "observation.intrinsics[wrist]"),
    ],
)
def test_the_client_checks_before_it_sends(client, policy, spec, change, field):
    with pytest.raises(PolicyClientError) as caught:
        client.predict(replace(make_observation(spec), **change))
    assert list(caught.value.fields) == [field]
    assert not policy.calls
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 2**63}, {"step": -1}, {"denoise_steps": 2000}])
def test_the_client_checks_numbers(client, spec, options):
    with pytest.raises(PolicyClientError, match=next(iter(options))):
        client.predict(make_observation(spec), **options)


@pytest.mark.parametrize(
    "options",
    [{"address": "localhost"}, {"encoding": "bmp"}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}],
)
def test_the_client_checks_its_own_options(options):
    with pytest.raises(UserError, match=next(iter(options))):
        PolicyClient(**{"address": "localhost:1", **options})


def test_steps_do_not_go_back_without_a_reset(client, spec):
    observation = make_observation(spec)
    for step in (0, 4, 4):
        client.predict(observation, step=step)
    with pytest.raises(PolicyClientError, match="step: 0 after 4; call ResetSession"):
        client.predict(observation, step=0)
    client.reset()
    client.predict(observation, step=0)


def test_a_closed_session_is_unknown(stub, request_):
    session = request_.session_id
    stub.ResetSession(policy_pb2.ResetSessionRequest(session_id=session))
    stub.Predict(request_, timeout=10)
    stub.CloseSession(policy_pb2.CloseSessionRequest(session_id=session))
    for call, message in (
        (stub.Predict, request_),
        (stub.ResetSession, policy_pb2.ResetSessionRequest(session_id=session)),
        (stub.CloseSession, policy_pb2.CloseSessionRequest(session_id=session)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(message, timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert find(details_of(caught.value), error_details_pb2.ErrorInfo).reason == "UNKNOWN_SESSION"


def test_the_client_says_that_its_session_is_lost(client, stub, spec):
    stub.CloseSession(policy_pb2.CloseSessionRequest(session_id=client._session))
    with pytest.raises(SessionLost):
        client.predict(make_observation(spec))
    with pytest.raises(SessionLost):
        client.reset()


def test_a_client_that_is_not_open_says_how_to_open_it(server, spec):
    client = PolicyClient(server.address)
    for use in (lambda: client.contract, client.reset, lambda: client.predict(make_observation(spec))):
        with pytest.raises(PolicyClientError, match="with PolicyClient"):
            use()
    client.close()


def test_two_cameras_of_one_name_are_refused():
    spec = replace(make_spec().observation, cameras=(CameraSpec("a", 8, 8), CameraSpec("b", 8, 8)))
    message = encode_observation_spec(spec)
    message.cameras[1].name = "a"
    with pytest.raises(FieldError, match="two entries named 'a'"):
        decode_observation_spec(message)
