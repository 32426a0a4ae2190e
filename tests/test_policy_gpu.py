"""Whole policies with geometry on a GPU: no waiting for the device, and one graph with two branches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import vla_geometry
from vla_core.assemble import build_policy
from vla_core.batch import Batch
from vla_core.framework import FrameworkConfig
from vla_core.overlap import in_turn
from vla_core.policy import VLAPolicy
from vla_core.registry import override
from vla_core.testing import make_observation, make_spec
from vla_geometry import MapAnythingEncoder
from vla_heads import LayerwiseFM
from vla_vlm import Qwen25VL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
QUERIES = {"width": 16, "n_heads": 2, "n_tokens": 4, "depth": 1}
FUSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "mean_pool": ("MeanPool", {}),
    "aligned_concat": ("AlignedConcat", {}),
    "cross_attention": ("CrossAttentionFusion", {"width": 16, "n_heads": 2}),
    "gated": ("Gated", {"gate_width": 8}),
    "language_guided": ("LanguageGuided", {"width": 16, "n_heads": 2, "depth": 1}),
    "prefix": ("Prefix", QUERIES),
    "head_context": ("HeadContext", QUERIES),
    "position_3d": ("Position3D", {}),
    "position_3d_points": ("Position3D", {"depth": "points"}),
    "hierarchical": ("Hierarchical", QUERIES),
    "align_loss": ("AlignLoss", {}),
}
SPEC = make_spec(n_cameras=2, height=112, width=112)


@pytest.fixture(params=FUSIONS)
def case(request: pytest.FixtureRequest) -> tuple[VLAPolicy, Batch, torch.Tensor]:
    """A tiny policy in bf16 whose fusion has an effect, two rows with depth and calibration, and noise."""
    name, options = FUSIONS[request.param]
    parts = {"vla.vlms": Qwen25VL, "vla.heads": LayerwiseFM, "vla.geometry": MapAnythingEncoder}
    undo = [override(group, "part", part) for group, part in parts.items()]
    undo.append(override("vla.fusions", "part", getattr(vla_geometry, name)))
    config = FrameworkConfig(
        horizon=SPEC.action.horizon,
        vlm={"name": "part", "base_vlm": "tiny"},
        head={"name": "part", "n_heads": 4, "n_future_tokens": 2},
        geometry={"name": "part", "size": "tiny"},
        fusion={"name": "part", **options},
        transforms=[{"name": "normalize"}],
    )
    torch.manual_seed(0)
    policy = build_policy(config, {SPEC.embodiment: SPEC}).to("cuda", torch.bfloat16).eval()
    for back in undo:
        back()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    batch = policy.collate([observe(seed) for seed in range(2)]).to("cuda")
    return policy, batch, torch.randn(2, 4, 7, device="cuda")


def observe(seed: int) -> Any:
    rng, names = np.random.default_rng(seed), [c.name for c in SPEC.observation.cameras]
    matrix = np.array([[100, 0, 56], [0, 100, 56], [0, 0, 1]], np.float32)
    return replace(
        make_observation(SPEC, seed),
        depth={n: rng.uniform(0.5, 2, (112, 112)).astype(np.float32) for n in names},
        intrinsics=dict.fromkeys(names, matrix),
        extrinsics=dict.fromkeys(names, np.eye(4, dtype=np.float32)),
    )


@torch.inference_mode()
def test_beside_and_in_turn_are_the_same_and_nothing_waits(
    case: tuple[VLAPolicy, Batch, torch.Tensor],
) -> None:
    policy, batch, noise = case
    with in_turn():
        expected = policy.model.predict(batch, noise)
    assert expected.isfinite().all()
    torch.cuda.set_sync_debug_mode("error")
    try:
        answers = [policy.model.predict(batch, noise) for _ in range(10)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(answer, expected) for answer in answers)


@torch.inference_mode()
def test_one_graph(case: tuple[VLAPolicy, Batch, torch.Tensor]) -> None:
    policy, batch, noise = case
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        policy.model.predict(batch, noise)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = policy.model.predict(batch, noise)
    batch.images.copy_(255 - batch.images)
    graph.replay()
    with in_turn():
        expected = policy.model.predict(batch, noise)
    assert (captured - expected).norm() <= 2e-2 * (expected - noise).norm()
