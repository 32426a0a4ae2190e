"""Parameters and FLOP of each fusion are those that its docstring and the README give."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from vla_core.batch import Cameras, TokenFields
from vla_core.config import build_config
from vla_core.interfaces import FusionDims, GeometryFeatures, TextTokens, VisualTokens, VLMOutput
from vla_core.registry import load

H, C, W, D, K, M, Y, V, SIDE = 48, 40, 24, 2, 6, 10, 3, 2, 4
N = G = V * SIDE**2
SIZES = {"width": W, "depth": D, "n_heads": 2}
QUERIES = {**SIZES, "n_tokens": K}
IN_QUERIES = D * (14 * W**2 + 2 * C * W)


def of_queries(sets):
    return D * (4 * G * C * W + sets * (4 * K * G * W + 28 * K * W**2 + 4 * K**2 * W))


ALIGNED = N * (2 * C * H + 4 * H**2)
# name, node, weights of matrices, FLOP a row
COSTS = [
    ("mean_pool", {}, C * H + 2 * H**2, 2 * C * H + 4 * N * H**2),
    ("aligned_concat", {}, C * H + 2 * H**2, ALIGNED),
    (
        "cross_attention",
        {"width": W, "n_heads": 2},
        2 * W * (H + C),
        4 * N * H * W + 4 * G * C * W + 4 * N * G * W,
    ),
    ("gated", {"conditioning": "none", "gate_width": W}, C * H + W * C, 2 * N * (C * H + W * C + W)),
    (
        "gated",
        {"conditioning": "semantic", "gate_width": W},
        C * H + W * (C + 2 * H),
        2 * N * (C * H + W * (C + H) + W) + 2 * W * H,
    ),
    (
        "language_guided",
        SIZES,
        H * W + (12 * D + 1) * W**2 + C * W + C * H,
        2 * M * (H * W + W**2)
        + D * (24 * M * W**2 + 4 * M**2 * W)
        + 2 * G * C * W
        + 2 * M * G * W
        + 2 * N * C * H,
    ),
    ("prefix", QUERIES, IN_QUERIES + W * H, of_queries(1) + 2 * K * W * H),
    ("head_context", {"compress": "pool", "width": W, "pool_size": 2}, C * W, 2 * V * 4 * C * W),
    ("head_context", {"compress": "qformer", **QUERIES}, IN_QUERIES, of_queries(1)),
    ("head_context", {"compress": "per_layer", **QUERIES}, IN_QUERIES, of_queries(Y)),
    ("position_3d", {"n_frequencies": 5}, 6 * 5 * H + H**2, 2 * N * (6 * 5 * H + H**2)),
    (
        "position_3d",
        {"n_frequencies": 5, "cells": 2},
        6 * 5 * 4 * H + H**2,
        2 * N * (6 * 5 * 4 * H + H**2),
    ),
    (
        "hierarchical",
        QUERIES,
        IN_QUERIES + W * H + C * H + 2 * H**2,
        of_queries(1) + 2 * K * W * H + ALIGNED,
    ),
    ("align_loss", {}, H**2 + H * C, 2 * N * (H**2 + H * C)),
]


def apply(fusion):
    """One row, on the meta device: counting needs no numbers."""
    valid = torch.ones(1, N + M, dtype=torch.bool)
    counts = {"image": N, "prefix": 0, "query": 0}
    fields = TokenFields(valid.long(), valid, valid.to(torch.uint8), counts=counts)
    text = TextTokens(torch.randn(1, N + M, H), valid, valid, fields)
    geometry = GeometryFeatures(torch.randn(1, V, SIDE, SIDE, C))
    cameras = Cameras(torch.ones(1, V, 3, 3), torch.ones(1, V, 4, 4), torch.ones(1, V, 8, 8))
    if fusion.traits.train_only:
        fusion.loss(VLMOutput({fusion.layer: text.embeds}, valid, {"image": valid}), geometry)
    else:
        fusion(VisualTokens(torch.randn(1, N, H), valid[:, :N], (V, SIDE, SIDE)), geometry, text, cameras)


@pytest.mark.parametrize(("name", "node", "weights", "flop"), COSTS)
def test_costs_are_as_documented(name, node, weights, flop):
    cls = load("vla.fusions", name)
    with torch.device("meta"):
        config = build_config(cls.Config, node, "")
        fusion = cls.build(config, FusionDims(H, C, Y, (SIDE, SIDE))).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            apply(fusion)
    assert sum(p.numel() for p in fusion.parameters() if p.ndim == 2 and min(p.shape) > 1) == weights
    assert counter.get_total_flops() == flop
