"""A policy that needs depth or calibrated cameras says so; who lacks them is told before a robot moves."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_core.types import ActionChunk
from vla_serve import PolicyClient, PolicyServer
from vla_serve.clients.errors import HandshakeError, PolicyClientError
from vla_serve.doctor.diagnosis import fitted
from vla_serve.doctor.frames import Frames, check_sees
from vla_serve.probing.made_up import made_up, variants
from vla_serve.server_cli import main
from vla_serve.v1 import policy_pb2 as pb

SPEC = make_spec()
NAMES = [camera.name for camera in SPEC.observation.cameras]
LACKS = r"the policy needs depth and intrinsics of at least one camera: "


class Deep:
    """Its answer is the mean depth that it sees."""

    framework, specs = "Deep", MappingProxyType({SPEC.embodiment: SPEC})
    camera_inputs = frozenset({"depth", "intrinsics"})

    def act(self, observations, seeds, steps=None):
        shape = (SPEC.action.horizon, SPEC.action.dim)
        means = [np.mean([depth.mean() for depth in o.depth.values()]) for o in observations]
        return [ActionChunk(np.full(shape, mean, np.float32), SPEC.action) for mean in means]


@pytest.fixture(scope="module")
def address():
    with PolicyServer(Deep()) as server:
        yield server.address


def test_the_contract_says_what_is_needed_and_made_up_observations_have_it(address):
    with PolicyClient(address) as client:
        assert client.camera_inputs == {"depth", "intrinsics"}
        asked = client._connection.stub.GetPolicyContract(pb.GetPolicyContractRequest(), timeout=5)
        assert len(asked.contract.camera_inputs) == 2
        seen = made_up(SPEC.observation, 3, inputs=client.camera_inputs)
        assert seen.extrinsics is None
        chunk = client.predict(seen)
        np.testing.assert_allclose(chunk.actions, np.mean([d.mean() for d in seen.depth.values()]), rtol=1e-6)
        (other,) = client.predict_batch([variants(SPEC.observation, 3, client.camera_inputs)["depth"]])
        assert not np.allclose(other.actions, chunk.actions)
        # One camera that has all is enough, as the policy says.
        first = NAMES[0]
        some = replace(seen, depth={first: seen.depth[first]}, intrinsics={first: seen.intrinsics[first]})
        client.predict(some)


def test_an_observation_without_it_is_never_sent(address):
    seen = made_up(SPEC.observation, 0, inputs=["depth"])
    with PolicyClient(address) as client:
        for given in (seen, make_observation(SPEC)):
            with pytest.raises(
                PolicyClientError, match=rf"observation\.depth: missing; {LACKS}camera '{NAMES[0]}'"
            ):
                client.predict(given)
        (refused,) = client.predict_batch([seen])
        assert "lacks intrinsics" in str(refused)
        # Depth of one and intrinsics of the other camera are of no use to the policy.
        (a, b), full = NAMES[:2], made_up(SPEC.observation, 0, inputs=client.camera_inputs)
        mixed = replace(full, depth={a: full.depth[a]}, intrinsics={b: full.intrinsics[b]})
        with pytest.raises(
            PolicyClientError, match=rf"camera '{a}' lacks intrinsics; camera '{b}' lacks depth"
        ):
            client.predict(mixed)
        # The server trusts nobody.
        client._camera_inputs = frozenset()
        with pytest.raises(PolicyClientError, match=rf"observation\.depth: missing; {LACKS}"):
            client.predict(seen)


def test_the_handshake_compares_what_a_client_says_that_it_sends(address):
    full, half = ["depth", "intrinsics", "extrinsics"], ["depth"]
    with PolicyClient(address, camera_inputs={NAMES[0]: full}) as client:
        assert client.check_compatibility() == []
    for sent, words in (
        ({}, f"camera '{NAMES[0]}' lacks depth, intrinsics; camera '{NAMES[1]}' lacks depth, intrinsics"),
        ({NAMES[0]: half}, f"camera '{NAMES[0]}' lacks intrinsics; "),
    ):
        client = PolicyClient(address, observation_spec=SPEC.observation, camera_inputs=sent)
        (found,) = client.check_compatibility()
        assert found.field == "camera_inputs"
        assert words in found.description
        assert "needs depth, intrinsics" in found.policy
        with pytest.raises(HandshakeError, match=f"camera_inputs: {LACKS}{words}"), client:
            pass
    with pytest.raises(UserError, match=r"camera_inputs\[front\]: no such camera"):
        PolicyClient(address, observation_spec=SPEC.observation, camera_inputs={"front": full})
    with pytest.raises(UserError, match=r"'dept' is none of depth, intrinsics, extrinsics"):
        PolicyClient(address, camera_inputs={NAMES[0]: ["dept"]})


def test_a_contract_of_a_later_version_is_not_half_understood():
    client = PolicyClient("127.0.0.1:1")
    reply = pb.OpenSessionResponse()
    with PolicyServer(Deep()) as server, PolicyClient(server.address) as other:
        request = pb.GetPolicyContractRequest()
        reply.contract.CopyFrom(other._connection.stub.GetPolicyContract(request, timeout=5).contract)
    reply.contract.camera_inputs.append(9)
    with pytest.raises(HandshakeError, match=r"camera_inputs: unknown value 9.*needs a newer client"):
        client._opened(reply)


def test_probe_sends_it(address, capsys):
    assert main(["probe", "--address", address, "--requests", "2"]) == 0
    said = capsys.readouterr().out
    assert "camera  with depth, intrinsics of at least one" in said
    assert "the answer does not depend on" in said
    assert "depth" not in said.partition("does not depend on:")[2].splitlines()[0]


def test_frames_are_replayed_with_their_geometry_in_the_contracts_size():
    camera = SPEC.observation.cameras[0]
    seen = made_up(SPEC.observation, 0, inputs=["depth", "intrinsics"])
    large = replace(
        seen,
        images={name: np.repeat(np.repeat(image, 2, 0), 2, 1) for name, image in seen.images.items()},
        depth={name: np.repeat(np.repeat(depth, 2, 0), 2, 1) for name, depth in seen.depth.items()},
        intrinsics={name: k * np.float32([[2], [2], [1]]) for name, k in seen.intrinsics.items()},
    )
    back = fitted(large, SPEC)
    assert back.depth[camera.name].shape == (camera.height, camera.width)
    np.testing.assert_allclose(back.intrinsics[camera.name], seen.intrinsics[camera.name])
    frames = Frames(SPEC, (large, replace(large, depth=None)), np.zeros((2, 1, 1)), np.ones((2, 1, 1), bool))
    with pytest.raises(UserError, match=f"--data: frames cannot be replayed, {LACKS}.*lacks depth"):
        check_sees(SPEC, Deep.camera_inputs, frames)


def test_robots_of_pictures_alone_are_told_at_the_start(address, capsys):
    pytest.importorskip("aiohttp", reason="needs the extra vla-serve[bridge]")
    pytest.importorskip("msgpack", reason="needs the extra vla-serve[bridge]")
    assert main(["bridge", "--address", address, "--starvla_port", "0"]) == 2
    said = capsys.readouterr().err
    assert "the policy needs depth and intrinsics of at least one camera" in said
    assert "send pictures and numbers alone" in said
