"""What a policy hands to a geometric branch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from vla_core.assemble import build_policy
from vla_core.framework import FrameworkConfig
from vla_core.interfaces import Fused, GeometryFeatures, PromptSpec, VLMRequest
from vla_core.registry import override
from vla_core.testing import make_sample, make_spec
from vla_core.traits import FusionTraits, GeometryTraits

SPEC = make_spec()


@dataclass(frozen=True)
class NoConfig:
    pass


class Encoder(nn.Module):
    """Always the same features, as an encoder with a cache."""

    Config, dim, traits = NoConfig, 5, GeometryTraits()

    @classmethod
    def build(cls, config, n_views, image_size, weights=True):
        return cls()

    def forward(self, images, cameras, needs=frozenset()):
        self.cameras = cameras
        self.features = getattr(self, "features", None) or GeometryFeatures(torch.zeros(1, 2, 3, 3, 5))
        return self.features


class Spy(nn.Module):
    """A fusion that only trains and remembers what it saw."""

    Config, needs, prompt, context_dim = NoConfig, frozenset(), PromptSpec(), None
    traits = FusionTraits(train_only=True)
    request = VLMRequest(layers=(1,))

    def __init__(self, dims):
        super().__init__()
        self.dims, self.seen = dims, []

    @classmethod
    def build(cls, config, dims):
        return cls(dims)

    def forward(self, visual, geometry, text, cameras):
        self.seen.append(geometry)
        return Fused(visual)

    def loss(self, out, geometry):
        self.seen.append(geometry)
        return {"spy": out.hidden[1].square().mean()}


def test_a_fusion_knows_the_grid_and_the_missing_views(fakes):
    undo = [override("vla.geometry", "encoder", Encoder), override("vla.fusions", "spy", Spy)]
    parts = {name: {"name": "fake"} for name in ("vlm", "head")}
    parts |= {"geometry": {"name": "encoder"}, "fusion": {"name": "spy"}}
    config = FrameworkConfig(horizon=4, transforms=[{"name": "normalize"}], **parts)
    policy = build_policy(config, {SPEC.embodiment: SPEC})
    for name in undo:
        name()
    assert policy.model.fusion.dims.grid == policy.model.vlm.dims.grid == (2, 2)
    batch = policy.collator([policy.pipelines[SPEC.embodiment](make_sample(SPEC, 0))])
    assert batch.tokens.all_views
    policy.model(batch)
    assert policy.model.geometry.cameras is batch.cameras  # nothing is masked where nothing is missing
    policy.model.fusion.seen.clear()
    batch.view_mask[0, 1] = False
    batch.tokens.all_views = False
    assert set(policy.model(batch)) == {"action_l1", "spy"}
    assert policy.model.geometry.cameras.view_mask is batch.view_mask
    fused, lost = policy.model.fusion.seen
    assert fused is lost
    assert fused.view_mask is batch.view_mask
    assert policy.model.geometry.features.view_mask is None  # a cached object is not written to
    policy.model.predict(batch, torch.zeros(1, 4, 7))
    assert len(policy.model.fusion.seen) == 2  # nothing of it runs at inference
