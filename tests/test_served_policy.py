"""Whole policies behind gRPC: a continued chunk is what ``act`` gives, and a known picture is not encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from vla_core import Observation, PreviousChunk, UserError, VLAPolicy
from vla_core.assemble import build_policy
from vla_core.config import build_config
from vla_core.flat import stacked
from vla_core.framework import FrameworkConfig
from vla_core.graphs import GraphedModel, GraphedPolicy
from vla_core.rows import Prepared, Row
from vla_core.testing import make_observation, make_spec
from vla_serve import ControlLoop, HandshakeError, PolicyClient, PolicyClientError, PolicyServer
from vla_serve.probing.made_up import made_up_inputs
from vla_train.testing.sizes import CAMERA, GEOMETRY_IMAGE, framework_tree

VARIANTS = {
    "guidance": ["head.rtc=guidance"],
    "training_time": ["head.rtc=training_time", "head.rtc_max_delay=3"],
}


SPATIAL = (
    "use_geometric_branch=true",
    "geometry={name: tiny, patch_size: 16, encoder_dim: 64, encoder_depth: 1, dim: 64}",
    "fusion={name: position_3d, depth: camera, frame: world}",
)


def build(name: str, *overrides: str) -> VLAPolicy:
    tree = framework_tree(name, "tiny", overrides)
    config = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
    size = GEOMETRY_IMAGE if config.geometry else CAMERA["tiny"]
    spec = make_spec(2, size, size, config.horizon)
    torch.manual_seed(0)
    policy = build_policy(config, {spec.embodiment: spec}).eval()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize("name", ["QwenGR00T", "QwenPI", "PI0"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_continued_chunk_is_what_act_makes_of_it(name: str, variant: str) -> None:
    policy = build(name, *VARIANTS[variant])
    (spec,) = policy.specs.values()
    observations = [make_observation(spec, seed) for seed in range(3)]
    with PolicyServer(policy) as server, PolicyClient(server.address, real_time_chunking=True) as client:
        assert client.max_delay_steps == (3 if variant == "training_time" else spec.action.horizon - 1)
        first = client.predict(observations[0], 3, step=0)
        second = client.predict(observations[1], 4, step=3, previous=first.after(3, 2))
        third = client.predict(observations[2], 5, step=7, previous=second.after(4, 1))
        free = client.predict(observations[1], 4, step=7)
    (local,) = policy.act(observations[:1], [3])
    np.testing.assert_array_equal(first.actions, local.actions)
    (local,) = policy.act(observations[1:2], [4], previous=[PreviousChunk(local.actions[3:], 2)])
    np.testing.assert_array_equal(second.actions, local.actions)
    (local,) = policy.act(observations[2:], [5], previous=[PreviousChunk(local.actions[4:], 1)])
    np.testing.assert_array_equal(third.actions, local.actions)
    np.testing.assert_array_equal(second.actions[:2], first.actions[3:5])
    assert not np.allclose(second.actions[2:], free.actions[2:], atol=1e-4)  # the rest knows of them


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("QwenGR00T", VARIANTS["guidance"]),
        ("QwenPI", VARIANTS["training_time"]),
        ("PI0", VARIANTS["guidance"]),
        ("QwenGR00T", SPATIAL),
    ],
)
def test_rows_of_a_run_go_to_a_graph_without_a_join(name: str, overrides: Sequence[str]) -> None:
    """Of real collators and models; rows with a constraint and without in one run, where heads take one."""
    policy = build(name, *overrides)
    (spec,) = policy.specs.values()
    left = None if overrides is SPATIAL else PreviousChunk(np.zeros((5, spec.action.dim), np.float32), 2)
    rows = []
    for i, previous in enumerate((None, left, None)):
        more = made_up_inputs(spec.observation.cameras, policy.camera_inputs, shift=i / 10)
        rows.append(Row(replace(make_observation(spec, i), **more), i, previous=previous))

    def again(run: Callable[[], torch.Tensor], pool: object) -> tuple[Callable[[], None], torch.Tensor]:
        out = run()

        def replay() -> None:
            out.copy_(run())

        return replay, out

    graphed = GraphedPolicy(policy, GraphedModel(policy.model, capture=again))
    for batch in (rows, rows[::-1]):
        parts = [graphed.prepare([row]) for row in batch]
        assert stacked(parts) is not None
        expected = policy.predict(Prepared.join([policy.prepare([row]) for row in batch]))
        torch.testing.assert_close(graphed.predict_rows(parts), expected, rtol=0, atol=0)
    assert graphed.graphs.count == 1


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_what_a_robot_executes_is_what_act_would_have_it(variant: str) -> None:
    """The loop, in the background and over the wire, against the same schedule written out with ``act``."""
    policy = build("QwenGR00T", *VARIANTS[variant])
    (spec,) = policy.specs.values()
    seen = [make_observation(spec, seed) for seed in range(14)]
    with (
        PolicyServer(policy) as server,
        PolicyClient(server.address, real_time_chunking=True) as client,
        ControlLoop(client, execute_steps=4, delay_steps=2) as loop,
    ):
        executed = [loop.act(observation, seed=step) for step, observation in enumerate(seen)]
    (chunk,) = policy.act(seen[:1], [0])
    expected = list(chunk.actions[:6])
    for step in (4, 8):
        previous = PreviousChunk(chunk.actions[4:], 2)
        (chunk,) = policy.act([seen[step]], [step], previous=[previous])
        np.testing.assert_array_equal(chunk.actions[:2], previous.actions[:2])
        expected += list(chunk.actions[2:6])
    np.testing.assert_array_equal(executed, expected)


def test_a_delay_the_head_was_not_trained_for() -> None:
    policy = build("QwenGR00T", *VARIANTS["training_time"])
    (spec,) = policy.specs.values()
    with PolicyServer(policy) as server, PolicyClient(server.address) as client:
        chunk = client.predict(make_observation(spec), step=0)
        with pytest.raises(
            PolicyClientError, match=r"previous\.delay_steps: 4; this policy bridges at most 3"
        ):
            client.predict(make_observation(spec), step=1, previous=chunk.after(1, 4))


def test_a_regression_head_is_named() -> None:
    policy = build("QwenOFT")
    (spec,) = policy.specs.values()
    said = "a MLPRegression cannot keep the start of an earlier chunk"
    with PolicyServer(policy) as server:
        with (
            pytest.raises(HandshakeError, match=said),
            PolicyClient(server.address, real_time_chunking=True),
        ):
            pass
        with PolicyClient(server.address) as client:
            chunk = client.predict(make_observation(spec), step=0)
            with pytest.raises(PolicyClientError, match=said):
                client.predict(make_observation(spec), step=1, previous=chunk.after(1, 1))
            with pytest.raises(
                PolicyClientError, match="view_keys: given, but this policy computes no geometry"
            ):
                client.predict(make_observation(spec), view_keys={"camera_0": "cell"})


@pytest.fixture(scope="module")
def seeing() -> VLAPolicy:
    return build("QwenMapAnythingPI", "geometry.cache_mib=8")


@pytest.fixture
def address(seeing: VLAPolicy) -> Iterator[str]:
    assert seeing.model.geometry is not None
    seeing.model.geometry.cache.clear()
    with PolicyServer(seeing) as server:
        yield server.address


def test_a_known_picture_is_not_encoded_again(seeing: VLAPolicy, address: str) -> None:
    (spec,) = seeing.specs.values()
    cache, seen = seeing.model.geometry.cache, list[int]()
    observation = make_observation(spec, 0)
    dark = replace(
        observation, images={**observation.images, "camera_0": np.zeros_like(observation.images["camera_0"])}
    )
    see = seeing.model.geometry._see
    seeing.model.geometry._see = lambda images: seen.append(len(images)) or see(images)
    try:
        with PolicyClient(address) as client:

            def answer(of: object, **keys: str) -> np.ndarray:
                seen.append(0)
                return client.predict(of, 1, view_keys=keys).actions

            first = answer(observation, camera_0="cell 1")
            known = answer(dark, camera_0="cell 1")
            changed = answer(dark, camera_0="cell 2")
            assert seen == [0, 2, 0, 1, 0, 2]  # pictures encoded, after each request
            answer(observation, camera_0="cell 1", camera_1="cell 1")  # of another camera: another picture
            assert seen[6:] == [0, 1]
            client.reset()
            seen.clear()
            answer(observation, camera_0="cell 1")
            assert seen == [0, 2]  # the scene of another episode
        with PolicyClient(address) as other:
            seen.clear()
            other.predict(observation, 1, view_keys={"camera_0": "cell 1"})
            assert seen == [2]  # another robot's cell
    finally:
        seeing.model.geometry._see = see
    assert len(cache) == 5
    np.testing.assert_array_equal(first, seeing.act([observation], [1])[0].actions)
    # The backbone sees the dark picture, the geometry the one that its key stands for.
    (local,) = seeing.act(
        [dark], [1], view_keys=[{"camera_0": next(k for k, _ in cache._entries if "cell 1" in k)}]
    )
    np.testing.assert_array_equal(known, local.actions)
    assert not np.array_equal(known, changed)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"camera_7": "a"}, r"view_keys\[camera_7\]: no such camera"),
        ({"camera_0": ""}, r"view_keys\[camera_0\]: 0 characters, expected 1 to 256"),
        ({"camera_0": "x" * 257}, r"view_keys\[camera_0\]: 257 characters"),
        ({"camera_0": 3}, r"view_keys\[camera_0\]: 3 is a int, expected a text"),
    ],
)
def test_bad_keys(seeing: VLAPolicy, address: str, keys: dict[str, str], words: str) -> None:
    (spec,) = seeing.specs.values()
    with PolicyClient(address) as client, pytest.raises(PolicyClientError, match=words):
        client.predict(make_observation(spec), view_keys=keys)


def test_a_trained_policy_gets_its_cache_when_it_is_served(tmp_path: Path) -> None:
    path = build("QwenMapAnythingPI").save(tmp_path / "steps_1", step=1)
    policy = VLAPolicy.from_pretrained(path)
    (spec,) = policy.specs.values()
    with (
        PolicyServer(policy) as server,
        PolicyClient(server.address) as client,
        pytest.raises(PolicyClientError, match=r"has no cache; set geometry\.cache_mib .*--cache_mib"),
    ):
        client.predict(make_observation(spec), view_keys={"camera_0": "a"})
    policy = VLAPolicy.from_pretrained(path, cache_mib=4)
    with PolicyServer(policy) as server, PolicyClient(server.address) as client:
        client.predict(make_observation(spec), view_keys={"camera_0": "a"})
    assert len(policy.model.geometry.cache) == 1
    with pytest.raises(UserError, match=r"cache_mib'?: must be >= 0, got -1"):
        VLAPolicy.from_pretrained(path, cache_mib=-1)


def test_a_policy_that_reads_depth_and_poses_is_served() -> None:
    policy = build("QwenPI", *SPATIAL)
    assert policy.camera_inputs == {"depth", "intrinsics", "extrinsics"}
    (spec,) = policy.specs.values()
    names = [camera.name for camera in spec.observation.cameras]
    size = spec.observation.cameras[0].height
    matrix = np.array([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]], np.float32)
    bare = make_observation(spec, 0)

    def seen(metres: float) -> Observation:
        return replace(
            bare,
            depth={name: np.full((size, size), metres, np.float32) for name in names},
            intrinsics=dict.fromkeys(names, matrix),
            extrinsics=dict.fromkeys(names, np.eye(4, dtype=np.float32)),
        )

    with PolicyServer(policy) as server, PolicyClient(server.address) as client:
        near, far = (client.predict(seen(metres), 0) for metres in (0.5, 1.5))
        with pytest.raises(PolicyClientError, match="depth"):
            client.predict(bare, 0)
    for metres, chunk in ((0.5, near), (1.5, far)):
        (local,) = policy.act([seen(metres)], [0])
        np.testing.assert_array_equal(chunk.actions, local.actions)
    assert not np.array_equal(near.actions, far.actions)
