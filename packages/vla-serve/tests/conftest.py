"""A numpy policy whose pace a test controls, and a server around it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from vla_core import registry
from vla_core.specs import RobotSpec
from vla_core.testing import make_spec
from vla_core.testing.logs import own_log
from vla_core.types import ActionChunk, Observation

pytest.importorskip("grpc_health", reason="needs the extra vla-serve[server]")

from vla_serve import PolicyClient, PolicyServer
from vla_serve.testing import ToyEnv


class ToyPolicy:
    """Answers ``seed + mean of the state + t``; ``gate`` holds it back, ``error`` makes it fail."""

    framework = "Toy"

    def __init__(self, spec: RobotSpec) -> None:
        self.specs = {spec.embodiment: spec}
        self.calls: list[tuple[Observation, int, int | None]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.error: Exception | None = None
        self.answer: np.ndarray | None = None

    def act(
        self, observations: Sequence[Observation], seeds: Sequence[int], steps: int | None = None
    ) -> list[ActionChunk]:
        self.running.set()
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        chunks = []
        for observation, seed in zip(observations, seeds, strict=True):
            self.calls.append((observation, seed, steps))
            spec = self.specs[observation.embodiment]
            value = seed % 1000 + float(np.mean(observation.state)) + np.arange(spec.action.horizon)
            actions = np.repeat(value[:, None], spec.action.dim, 1).astype(np.float32)
            chunks.append(ActionChunk(actions if self.answer is None else self.answer, spec.action))
        return chunks


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    with own_log():
        yield


@pytest.fixture
def spec() -> RobotSpec:
    return make_spec()


@pytest.fixture
def policy(spec: RobotSpec) -> ToyPolicy:
    return ToyPolicy(spec)


@pytest.fixture
def server(policy: ToyPolicy) -> Iterator[PolicyServer]:
    with PolicyServer(policy, max_queue=1, max_sessions=3, max_message_mb=1) as running:
        policy.calls.clear()
        policy.running.clear()
        yield running
        policy.gate.set()


@pytest.fixture
def client(server: PolicyServer, spec: RobotSpec) -> Iterator[PolicyClient]:
    with PolicyClient(server.address, observation_spec=spec.observation, action_spec=spec.action) as opened:
        yield opened


@pytest.fixture
def toy() -> Iterator[None]:
    """The environment ``toy`` in the registry."""
    undo = registry.override("vla.envs", "toy", ToyEnv)
    yield
    undo()


@pytest.fixture
def call(address: str) -> list[str]:
    """Words of ``vla-rollout``: two short episodes with the server that a module's ``address`` is of."""
    return f"--address {address} --env toy --task left --episodes 2 --videos none".split()
