"""What is special about a fusion: where geometry goes, which options it refuses."""

import pytest
import torch
from vla_core.config import build_config
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import FusionDims
from vla_core.registry import load
from vla_geometry import AlignLoss, CrossAttentionFusion, Gated, HeadContext, Hierarchical, Prefix


def perturb(fusion):
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return fusion


def test_cross_attention_reaches_every_view(dims, inputs):
    fusion = perturb(CrossAttentionFusion.build(CrossAttentionFusion.Config(width=12, n_heads=2), dims))
    base = inputs.run(fusion).visual.tokens
    inputs.geometry.tokens[0, 1, 0, 2] += torch.randn(12)
    changed = (inputs.run(fusion).visual.tokens - base).abs().amax(dim=-1)
    assert (changed[0] > 0).all()
    assert not changed[1:].any()


def test_gate_closes_and_opens(dims, inputs):
    fusion = perturb(Gated.build(Gated.Config(conditioning="none"), dims))
    with torch.no_grad():
        fusion.gate_out.bias.fill_(-1e4)
    assert torch.equal(inputs.run(fusion).visual.tokens, inputs.visual.tokens)
    with torch.no_grad():
        fusion.gate_out.bias.fill_(1e4)
    open_ = inputs.run(fusion).visual.tokens - inputs.visual.tokens
    expected = fusion.project(fusion.norm(inputs.geometry.tokens.flatten(1, 3)))
    assert torch.allclose(open_, expected, atol=1e-5)


def test_gate_touches_only_its_own_place(dims, inputs):
    fusion = perturb(Gated.build(Gated.Config(), dims))
    base = inputs.run(fusion).visual.tokens
    inputs.geometry.tokens[0, 1, 0, 2] += torch.randn(12)  # view 1, row 0, column 2 -> token 6 + 2
    assert (base != inputs.run(fusion).visual.tokens).any(dim=-1).nonzero().tolist() == [[0, 8]]


def test_pooled_context_masks_missing_views(dims, inputs):
    fusion = HeadContext.build(HeadContext.Config(compress="pool", pool_size=2), dims)
    assert fusion.context_dim == dims.geometry_dim
    inputs.hide_view(1, 0)
    context = inputs.run(fusion).context
    assert context.mask.tolist() == [[True] * 8, [False] * 4 + [True] * 4, [True] * 8]
    assert not context.tokens[1, :4].any()


def test_queries_are_masked_only_without_any_view(dims, inputs):
    fusion = HeadContext.build(HeadContext.Config(n_tokens=3, depth=1), dims)
    inputs.hide_view(1, 0)
    assert inputs.run(fusion).context.mask.all()
    inputs.hide_view(1, 1)
    assert inputs.run(fusion).context.mask.all(dim=1).tolist() == [True, False, True]


def test_layers_have_queries_of_their_own(dims, inputs):
    fusion = HeadContext.build(HeadContext.Config(compress="per_layer", n_tokens=3, depth=2), dims)
    base = inputs.run(fusion).context.tokens
    assert len(base) == dims.n_layers
    with torch.no_grad():
        fusion.queries.queries[2] += 1.0
    changed = [not torch.equal(a, b) for a, b in zip(base, inputs.run(fusion).context.tokens, strict=True)]
    assert changed == [False, False, True, False]


@pytest.mark.parametrize("cls", [Prefix, Hierarchical])
@pytest.mark.parametrize("k", [8, 16, 32])
def test_prefix_reserves_its_tokens(cls, k, dims, inputs):
    fusion = cls.build(cls.Config(n_tokens=k), dims)
    assert fusion.prompt.n_prefix == k
    prefix = inputs.run(fusion).prefix
    assert prefix.shape == (3, k, dims.hidden_size)
    assert 0.01 < prefix.std() < 0.04  # about the size of word embeddings


@pytest.mark.parametrize("span_has_missing", [True, False])
def test_align_loss_pairs_tokens_with_places(dims, inputs, span_has_missing):
    fusion = AlignLoss.build(AlignLoss.Config(), dims)
    assert fusion.layer == 3
    inputs.hide_view(1, 0)

    def align():
        out = inputs.out(3)
        if span_has_missing:
            image = torch.zeros_like(out.spans["image"])
            image[:, 2:14] = True
            out.spans["image"] = image
        return fusion.loss(out, inputs.geometry)["align"].detach()

    # A projector made by hand: the first 12 channels as they are. Then the loss is known.
    fusion.project = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(16, 12, bias=False))
    with torch.no_grad():
        fusion.project[1].weight.copy_(torch.eye(12, 16))
    inputs.hidden[:, 2:14, :12] = inputs.geometry.tokens.flatten(1, 3)
    assert align() == pytest.approx(0.0, abs=1e-6)
    inputs.hidden[1, 2:8] = 7.0  # the missing view
    assert align() == pytest.approx(0.0, abs=1e-6)
    inputs.hidden[1, 8] *= -1  # one of 30 valid tokens looks the other way
    assert align() == pytest.approx(2 / 30, rel=1e-4)
    inputs.geometry.view_mask = None
    assert align().isfinite()


def test_align_loss_teaches_the_backbone_not_the_encoder(dims, inputs):
    fusion = AlignLoss.build(AlignLoss.Config(layer=2), dims)
    inputs.geometry.tokens.requires_grad_(True)
    inputs.hidden.requires_grad_(True)
    align = fusion.loss(inputs.out(2), inputs.geometry)["align"]
    align.backward()
    assert 0 < align < 2
    assert inputs.geometry.tokens.grad is None
    reached = inputs.hidden.grad.abs().sum(dim=-1) > 0
    assert reached[:, 2:14].all()
    assert not reached[:, 14:].any()
    for view in (0, 1):
        for row in range(3):
            inputs.hide_view(row, view)
    assert fusion.loss(inputs.out(2), inputs.geometry)["align"] == 0


def test_align_loss_needs_a_layer_and_a_grid(dims, inputs):
    with pytest.raises(ConfigError, match="layer: 5 must be between 0 and the backbone's 4"):
        AlignLoss.build(AlignLoss.Config(layer=5), dims)
    with pytest.raises(ConfigError, match=r"FusionDims\.grid is missing"):
        AlignLoss.build(AlignLoss.Config(), FusionDims(16, 12, 4))
    fusion = AlignLoss.build(AlignLoss.Config(), FusionDims(16, 12, 4, (3, 2)))
    with pytest.raises(UserError, match=r"visual\.grid: \(2, 3\)"):
        inputs.run(fusion)


@pytest.mark.parametrize(
    ("name", "node", "message"),
    [
        ("cross_attention", {"width": 10, "n_heads": 3}, "n_heads: width 10"),
        ("cross_attention", {"width": 4}, "n_heads: width 4 must be at least 8"),
        ("cross_attention", {"width": 0}, "width': must be >= 1, got 0"),
        ("gated", {"conditioning": "text"}, "conditioning"),
        ("gated", {"gate_width": 0}, "gate_width': must be >= 1, got 0"),
        ("language_guided", {"depth": 0}, "depth': must be >= 1, got 0"),
        ("language_guided", {"n_heads": 0}, "n_heads': must be >= 1, got 0"),
        ("prefix", {"n_tokens": 0}, "n_tokens': must be >= 1"),
        ("hierarchical", {"n_token": 8}, "did you mean 'n_tokens'"),
        ("head_context", {"compress": "qforme"}, "did you mean 'qformer'"),
        ("head_context", {"pool_size": 0}, "pool_size': must be >= 1"),
        ("position_3d", {"n_frequencies": 0}, "n_frequencies': must be >= 1"),
        ("position_3d", {"cells": 0}, "cells': must be >= 1"),
        ("position_3d", {"shortest": 5.0, "longest": 1.0}, "shortest: 5"),
    ],
)
def test_bad_options_name_the_key(name, node, message, dims):
    cls = load("vla.fusions", name)
    with pytest.raises(ConfigError, match=message) as error:
        cls.build(build_config(cls.Config, node, "framework.fusion"), dims)
    assert "\n" not in str(error.value)
