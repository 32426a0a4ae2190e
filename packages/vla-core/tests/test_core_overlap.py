"""The order of forks and joins, with streams that only tell; on a GPU: test_core_gpu.py."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from vla_core import overlap
from vla_core.interfaces import Context, Fused, GeometryFeatures, PromptSpec, VLMRequest
from vla_core.model import VLAModel
from vla_core.overlap import in_turn, side_by_side
from vla_core.policy import VLAPolicy
from vla_core.testing import make_sample, make_spec, tiny_policy
from vla_core.traits import FusionTraits, GeometryTraits

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPEC = make_spec()


@pytest.fixture
def told(monkeypatch):
    """What streams are told, in order."""
    events = []

    @dataclass
    class Stream:
        name: str

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def use(stream):
        events.append(f"on {stream.name}")
        yield
        events.append(f"off {stream.name}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("here"))
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(
        overlap, "_side_stream", lambda device, thread, depth: Stream(("there", "beyond")[depth])
    )
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda x, stream: events.append(f"keep for {stream.name}")
    )
    return events


@torch.no_grad()
def test_forks_joins_and_keeps(told):
    features = GeometryFeatures(torch.zeros(2), depth=torch.zeros(1))
    aside, result = side_by_side(
        lambda: told.append("side") or features, lambda: told.append("main") or 5, CUDA
    )
    assert aside is features
    assert result == 5
    fork, join = "there waits for here", "here waits for there"
    assert told == [fork, "on there", "side", "off there", "main", join, "keep for here", "keep for here"]


@torch.no_grad()
def test_a_call_within_a_call_has_a_stream_of_its_own(told):
    def inner(name):
        return lambda: side_by_side(lambda: told.append(f"{name} aside"), lambda: None, CUDA)

    side_by_side(inner("side"), inner("main"), CUDA)
    assert told.index("on beyond") < told.index("side aside") < told.index("main aside")
    assert told.count("on beyond") == 2
    assert told.count("on there") == 1
    assert told[-1] == "here waits for there"
    told.clear()
    side_by_side(lambda: None, lambda: None, CUDA)  # the depth is what it was
    assert "on beyond" not in told


@torch.no_grad()
@pytest.mark.parametrize("broken", ["side", "main"])
def test_joins_after_an_error(told, broken):
    def piece(name):
        if name == broken:
            raise ValueError(name)

    with pytest.raises(ValueError, match=broken):
        side_by_side(lambda: piece("side"), lambda: piece("main"), CUDA)
    assert told[-1] == "here waits for there"


def test_in_turn_on_a_cpu_with_gradients_or_when_told_to(told):
    def run(device):
        return side_by_side(lambda: told.append("side"), lambda: told.append("main"), device)

    run(CUDA)
    with torch.no_grad():
        run(CPU)
        with in_turn():
            run(CUDA)
        assert told == ["side", "main"] * 3
        run(CUDA)
        assert told[6:8] == ["there waits for here", "on there"]


class Encoder(nn.Module):
    dim, traits = 5, GeometryTraits()

    def forward(self, images, cameras, needs=frozenset()):
        means = images.float().mean(dim=(2, 3, 4))[..., None, None, None]
        return GeometryFeatures(means.expand(-1, -1, 3, 3, 5))


class Reads(nn.Module):
    """Adds the mean of the geometry to what the head reads: by the vision tokens, or as its context."""

    needs, prompt, request = frozenset(), PromptSpec(), VLMRequest()

    def __init__(self, bypass, honest=True):
        super().__init__()
        self.traits, self.honest = FusionTraits(bypasses_backbone=bypass), honest
        self.context_dim = 5 if bypass else None

    def forward(self, visual, geometry, text, cameras):
        mean = geometry.tokens.mean(dim=(1, 2, 3, 4))[:, None, None]
        if self.traits.bypasses_backbone and self.honest:
            mask = torch.ones(len(mean), 1, dtype=torch.bool)
            return Fused(visual, context=Context(mean.expand(-1, 1, 5), mask))
        return Fused(replace(visual, tokens=visual.tokens + mean / 255))

    def loss(self, out, geometry):
        return {}


def assemble(fusion):
    plain = tiny_policy(SPEC)
    policy = VLAPolicy(VLAModel(plain.model.vlm, plain.model.head, Encoder(), fusion), plain.pipelines).eval()
    return policy, policy.collator([policy.pipelines[SPEC.embodiment](make_sample(SPEC, 0))])


@torch.no_grad()
@pytest.mark.parametrize("bypass", [False, True])
def test_a_policy_runs_geometry_beside_what_does_not_need_it(told, monkeypatch, bypass):
    policy, batch = assemble(Reads(bypass))
    policy.model.geometry.register_forward_hook(lambda *_: told.append("geometry"))
    policy.model.vlm.register_forward_hook(lambda *_: told.append("backbone"))
    contexts, sample = [], policy.model.head.sample
    policy.model.head.sample = lambda inputs, *rest: contexts.append(inputs.context) or sample(inputs, *rest)
    in_order = policy.model.predict(batch, torch.zeros(1, 4, 7))
    assert told == (["geometry", "backbone"])
    told.clear()
    on_gpu = lambda side, main, device: side_by_side(side, main, CUDA)  # noqa: E731
    monkeypatch.setattr("vla_core.model.side_by_side", on_gpu)
    assert torch.equal(policy.model.predict(batch, torch.zeros(1, 4, 7)), in_order)
    join = told.index("here waits for there")
    assert told.index("geometry") < told.index("off there") < join
    assert (told.index("backbone") < join) is bypass
    assert [context is not None for context in contexts] == [bypass] * 2


def test_a_fusion_that_claims_to_bypass_must():
    policy, batch = assemble(Reads(True, honest=False))
    with pytest.raises(ValueError, match="must return the visual tokens it was given"):
        policy.model.predict(batch, torch.zeros(1, 4, 7))
