"""Every fusion in a whole policy: tiny Qwen2.5-VL and LLaVA-3D, the tiny geometry encoder, LayerwiseFM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vla_core import registry
from vla_core.assemble import build_policy
from vla_core.batch import Batch
from vla_core.errors import UserError
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.testing import make_observation, make_sample, make_spec
from vla_core.types import Observation

SMALL = {"width": 16, "n_heads": 2}
QUERIES = {**SMALL, "n_tokens": 4, "depth": 1}
FUSIONS: dict[str, dict[str, Any]] = {
    "mean_pool": {"name": "mean_pool"},
    "aligned_concat": {"name": "aligned_concat"},
    "cross_attention": {"name": "cross_attention", **SMALL},
    "gated": {"name": "gated", "gate_width": 8},
    "gated_none": {"name": "gated", "gate_width": 8, "conditioning": "none"},
    "language_guided": {"name": "language_guided", **SMALL, "depth": 1},
    "prefix": {"name": "prefix", **QUERIES},
    "context_pool": {"name": "head_context", "compress": "pool", "pool_size": 2},
    "context_qformer": {"name": "head_context", "compress": "qformer", **QUERIES},
    "context_per_layer": {"name": "head_context", "compress": "per_layer", **QUERIES},
    "position_3d": {"name": "position_3d"},
    "position_3d_encoder": {"name": "position_3d", "depth": "geometry", "frame": "world"},
    "position_3d_points": {"name": "position_3d", "depth": "points"},
    "hierarchical": {"name": "hierarchical", **QUERIES},
    "align_loss": {"name": "align_loss"},
}
ALL = pytest.mark.parametrize("fusion", FUSIONS)
VLMS = pytest.mark.parametrize("vlm", ["qwen2_5_vl", "llava3d"])
SPEC = make_spec(n_cameras=2, height=32, width=32)


def build(fusion: dict[str, Any] | None, vlm: str = "qwen2_5_vl") -> VLAPolicy:
    tiny = {"hidden_size": 32, "n_layers": 2, "n_heads": 4, "intermediate_size": 32, "vision_hidden": 16}
    tiny |= {"vision_depth": 1, "vision_heads": 2, "vision_intermediate": 16}
    tiny |= {"window_size": 32} if vlm == "qwen2_5_vl" else {"patch_size": 16}
    geometry = {"name": "tiny", "patch_size": 8, "encoder_dim": 16, "encoder_depth": 1, "dim": 24}
    geometry |= {"sharing_depth": 2, "head_dim": 8, "n_registers": 1}
    config = FrameworkConfig(
        horizon=SPEC.action.horizon,
        vlm={"name": vlm, "tiny": tiny},
        head={
            "name": "layerwise_fm", "n_heads": 2, "n_future_tokens": 2, "state_hidden": 8, "decoder_hidden": 8
        },
        geometry=geometry if fusion else None,
        fusion=fusion,
        transforms=[{"name": "normalize"}],
    )  # fmt: skip
    torch.manual_seed(0)
    return build_policy(config, {SPEC.embodiment: SPEC})


def observe(seed: int) -> Observation:
    """With depth, intrinsics and extrinsics of both cameras."""
    rng, names = np.random.default_rng(seed), [c.name for c in SPEC.observation.cameras]
    matrix = np.array([[30, 0, 16], [0, 30, 16], [0, 0, 1]], np.float32)
    return replace(
        make_observation(SPEC, seed),
        depth={n: (rng.uniform(0.5, 3) + rng.uniform(0, 0.2, (32, 32))).astype(np.float32) for n in names},
        intrinsics=dict.fromkeys(names, matrix),
        extrinsics=dict.fromkeys(names, np.eye(4, dtype=np.float32)),
    )


def collate(policy: VLAPolicy) -> Batch:
    assert policy.collator is not None
    pipeline = policy.pipelines[SPEC.embodiment]
    samples = [replace(make_sample(SPEC, seed), observation=observe(seed)) for seed in range(2)]
    return policy.collator([pipeline(sample) for sample in samples])


def awake(policy: VLAPolicy) -> VLAPolicy:
    """As after some training: zero starts would make every comparison of actions hold for nothing."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return policy.eval()


def test_every_fusion_is_here() -> None:
    assert {node["name"] for node in FUSIONS.values()} == set(registry.names("vla.fusions"))


@VLMS
@ALL
def test_trains_acts_and_travels(fusion: str, vlm: str, tmp_path: Path) -> None:
    policy = build(FUSIONS[fusion], vlm)
    policy.model.train()
    batch = collate(policy)
    optimizer = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):  # the second step goes through opened zero starts
        terms = policy.model(batch)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert set(terms) == ({"action_loss", "align"} if fusion == "align_loss" else {"action_loss"})
    assert loss.isfinite()
    assert isinstance(policy.model.fusion, nn.Module)
    learning = [
        p.grad is not None and bool(p.grad.isfinite().all()) for p in policy.model.fusion.parameters()
    ]
    assert all(learning)
    observations = [observe(5), observe(6)]
    chunks = awake(policy).act(observations, [0, 1])
    again = VLAPolicy.from_pretrained(policy.save(tmp_path / "steps_2", step=2))
    for chunk, other in zip(chunks, again.act(observations, [0, 1]), strict=True):
        assert chunk.actions.shape == (4, 7)
        assert np.isfinite(chunk.actions).all()
        assert np.array_equal(chunk.actions, other.actions)
    assert type(again.model.fusion) is type(policy.model.fusion)


def actions(policy: VLAPolicy, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return policy.model.predict(batch, torch.zeros(len(batch), 4, 7))


@VLMS
@ALL
def test_geometry_of_another_sample_moves_the_actions(fusion: str, vlm: str) -> None:
    """By more than 5 % of their spread for every fusion, and not at all for the one that only trains."""
    policy = awake(build(FUSIONS[fusion], vlm))
    batch = collate(policy)
    assert isinstance(policy.model.fusion, nn.Module)
    assert batch.cameras is not None
    with torch.no_grad():
        for parameter in policy.model.fusion.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    calls = []
    geometry: Any = policy.model.geometry
    encode = geometry.forward
    shift = 0

    def shuffled(*args: Any) -> Any:
        calls.append(args)
        features = encode(*args)
        depth, points = (None if x is None else x.roll(shift, 0) for x in (features.depth, features.points))
        return replace(features, tokens=features.tokens.roll(shift, 0), depth=depth, points=points)

    geometry.forward = shuffled
    before = actions(policy, batch)
    shift = 1
    assert batch.cameras.depth is not None
    batch.cameras.depth = batch.cameras.depth.roll(1, 0)
    moved = (actions(policy, batch) - before).abs().max()
    assert bool(calls) is (
        fusion not in ("align_loss", "position_3d")
    )  # it runs only where somebody reads it
    if fusion == "align_loss":
        assert moved == 0
    else:
        assert moved > 0.05 * before.std()


@VLMS
@ALL
def test_a_missing_view_has_no_say(fusion: str, vlm: str) -> None:
    policy = awake(build(FUSIONS[fusion], vlm))
    batch = collate(policy)
    assert batch.cameras is not None
    batch.view_mask[1, 1] = False
    batch.tokens.all_views = False
    terms = policy.model(batch, torch.zeros(2, 1, 4, 7), torch.full((2, 1), 0.5))
    assert all(term.isfinite() for term in terms.values())
    before = actions(policy, batch)
    for name in ("depth", "intrinsics", "extrinsics"):
        getattr(batch.cameras, name)[1, 1] = float("nan")
    batch.images[1, 1] = 255
    assert torch.equal(actions(policy, batch), before)


def test_position_3d_without_cameras_is_one_line() -> None:
    policy = build(FUSIONS["position_3d"]).eval()
    with pytest.raises(UserError, match=r"cameras\.depth: missing"):
        policy.act([make_observation(SPEC, 0)], [0])


def test_vision_only_start_is_the_policy_without_geometry() -> None:
    """Same backbone and head weights: the same actions, until the fusion has learnt something."""
    plain = build(None).eval()
    for name in (
        "aligned_concat",
        "cross_attention",
        "gated",
        "language_guided",
        "position_3d",
        "align_loss",
    ):
        policy = build(FUSIONS[name]).eval()
        policy.model.get_submodule("vlm").load_state_dict(plain.model.get_submodule("vlm").state_dict())
        policy.model.get_submodule("head").load_state_dict(plain.model.get_submodule("head").state_dict())
        assert torch.equal(actions(policy, collate(policy)), actions(plain, collate(plain))), name
