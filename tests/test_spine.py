"""One spine: what the dataset gives and what the wire gives are the same batch, and the same actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from vla_core.batch import Batch
from vla_core.policy import VLAPolicy
from vla_core.types import ActionChunk, Observation
from vla_serve import PolicyClient
from vla_serve.server import PolicyServer
from vla_train.composition import Composed, compose
from vla_train.presets import load_run_tree


@dataclass
class Recording:
    """A policy that keeps the batches the server makes."""

    policy: VLAPolicy
    batches: list[Batch]

    @property
    def specs(self) -> Any:
        return self.policy.specs

    @property
    def framework(self) -> str:
        return self.policy.framework

    def act(
        self, observations: Sequence[Observation], seeds: Sequence[int], steps: int | None = None
    ) -> list[ActionChunk]:
        self.batches.append(self.policy.collate(observations))
        return self.policy.act(observations, seeds, steps)


def stirred(policy: VLAPolicy) -> VLAPolicy:
    """Zero-initialised outputs would make every comparison of actions hold for nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy.eval()


def assert_same(a: Any, b: Any, path: str = "batch") -> int:
    """Compare two dataclasses of tensors bit by bit; returns how many tensors were compared."""
    count = 0
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, Tensor):
            assert x.dtype == y.dtype, f"{path}.{f.name}"
            assert torch.equal(x, y), f"{path}.{f.name}"
            count += 1
        elif hasattr(x, "__dataclass_fields__"):
            count += assert_same(x, y, f"{path}.{f.name}")
        else:
            assert x == y, f"{path}.{f.name}"
    return count


@pytest.fixture
def composed(quickstart: dict[str, Any], tmp_path: Path) -> Composed:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(quickstart))
    return compose(load_run_tree([path]))


def test_dataset_and_wire_give_the_same_batch_and_actions(composed: Composed, tmp_path: Path) -> None:
    policy = stirred(composed.policy)
    assert policy.collator is not None
    pipeline = policy.pipelines[next(iter(composed.data.specs))]
    source = composed.data.train[0]
    samples = [source[i] for i in (0, len(source) // 2, len(source) - 1)]
    recording = Recording(policy, [])
    with PolicyServer(recording) as server, PolicyClient(f"127.0.0.1:{server.port}") as client:
        for encoding in ("raw", "png"):
            with PolicyClient(f"127.0.0.1:{server.port}", encoding=encoding) as other:
                for seed, sample in enumerate(samples):
                    recording.batches.clear()
                    served = other.predict(sample.observation, seed=seed)
                    trained_on = policy.collator([pipeline(sample)], actions=False)
                    assert assert_same(trained_on, recording.batches[-1]) >= 6
                    (local,) = policy.act([sample.observation], [seed])
                    np.testing.assert_array_equal(served.actions, local.actions)
                    assert np.ptp(local.actions) > 0
                    assert served.actions.shape == (16, 4)
        again = client.predict(samples[0].observation, seed=1)
        first = client.predict(samples[0].observation, seed=0)
        assert not np.array_equal(again.actions, first.actions)  # the seed travels


def test_a_checkpoint_acts_bit_equally(composed: Composed, tmp_path: Path) -> None:
    policy = stirred(composed.policy)
    loaded = VLAPolicy.from_pretrained(policy.save(tmp_path / "steps_0", step=0))
    observations = [composed.data.train[0][i].observation for i in (0, 40)]
    for a, b in zip(policy.act(observations, [3, 4]), loaded.act(observations, [3, 4]), strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
    # Units: un-normalised actions of a real robot lie about where the demonstrations do.
    assert loaded.specs == policy.specs


def test_the_instruction_and_every_camera_matter(composed: Composed) -> None:
    policy = stirred(composed.policy)
    observation = composed.data.train[0][0].observation
    base = policy.act([observation], [0])[0].actions

    def changed(**changes: Any) -> bool:
        from dataclasses import replace

        return not np.array_equal(policy.act([replace(observation, **changes)], [0])[0].actions, base)

    assert changed(instruction="do the opposite")
    assert observation.state is not None
    assert changed(state=observation.state + np.float32(0.01))
    for name in observation.images:
        dark = {n: image // 2 if n == name else image for n, image in observation.images.items()}
        assert changed(images=dark), name
