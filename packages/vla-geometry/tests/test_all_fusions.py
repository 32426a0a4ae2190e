"""What must hold for every fusion, or for all that promise it."""

import dataclasses
from importlib.metadata import entry_points

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vla_core.config import build_config
from vla_core.errors import UserError
from vla_core.interfaces import Fusion, GeometryFeatures, PromptSpec, VLMRequest
from vla_core.registry import load

SMALL = {"width": 12, "n_heads": 2}
QUERIES = {**SMALL, "n_tokens": 5, "depth": 2}
VARIANTS = {
    "mean_pool": ("mean_pool", {}),
    "aligned_concat": ("aligned_concat", {}),
    "cross_attention": ("cross_attention", SMALL),
    "gated": ("gated", {"conditioning": "none", "gate_width": 8}),
    "gated_semantic": ("gated", {"conditioning": "semantic", "gate_width": 8}),
    "language_guided": ("language_guided", {**SMALL, "depth": 1}),
    "prefix": ("prefix", QUERIES),
    "context_pool": ("head_context", {"compress": "pool", "pool_size": 2, "width": 12}),
    "context_qformer": ("head_context", {"compress": "qformer", **QUERIES}),
    "context_per_layer": ("head_context", {"compress": "per_layer", **QUERIES}),
    "position_3d": ("position_3d", {}),
    "position_3d_encoder": ("position_3d", {"depth": "geometry", "frame": "camera", "n_frequencies": 4}),
    "position_3d_cells": ("position_3d", {"n_frequencies": 4, "cells": 2}),
    "position_3d_points": ("position_3d", {"depth": "points", "n_frequencies": 4}),
    "hierarchical": ("hierarchical", QUERIES),
    "align_loss": ("align_loss", {"layer": 2}),
}
ALL = pytest.mark.parametrize("variant", VARIANTS)
# All but those that put tokens of their own beside the pretrained ones (and the loss, which adds none).
STARTS_AT_VISION = [v for v in VARIANTS if v not in ("prefix", "hierarchical")]
POSITION_FREE = ["mean_pool"]
READS_TEXT = ["gated_semantic", "language_guided"]


def build(variant, dims, awake=True):
    """With ``awake``, as after some training: nothing is exactly zero any more."""
    name, node = VARIANTS[variant]
    cls = load("vla.fusions", name)
    fusion = cls.build(build_config(cls.Config, node, "framework.fusion"), dims)
    if awake:
        with torch.no_grad():
            for parameter in fusion.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return fusion


def differ(left, right, tolerance=1e-4):
    return any(not torch.allclose(a, b, atol=tolerance) for a, b in zip(left, right, strict=True))


def test_every_entry_point_is_here():
    ours = {p.name for p in entry_points(group="vla.fusions") if p.value.startswith("vla_geometry.")}
    assert ours == {name for name, _ in VARIANTS.values()}


@ALL
def test_protocol_and_shapes(variant, dims, inputs):
    fusion = build(variant, dims)
    assert isinstance(fusion, Fusion)
    fused = inputs.run(fusion)
    assert fused.visual.tokens.shape == inputs.visual.tokens.shape
    assert fused.visual.mask is inputs.visual.mask
    assert fused.visual.grid == inputs.visual.grid
    if fusion.prompt.n_prefix:
        assert fused.prefix.shape == (3, fusion.prompt.n_prefix, 16)
    else:
        assert fusion.prompt == PromptSpec()
        assert fused.prefix is None
    if fusion.context_dim is None:
        assert fused.context is None
    else:
        tokens = fused.context.tokens
        sets = [tokens] if isinstance(tokens, torch.Tensor) else tokens
        assert len(sets) == (4 if variant == "context_per_layer" else 1)
        count = 2 * 2 * 2 if variant == "context_pool" else 5
        assert {tuple(x.shape) for x in sets} == {(3, count, fusion.context_dim)}
        assert fused.context.mask.shape == (3, count)
        assert fused.context.mask.all()
    needs = {"position_3d_encoder": {"depth"}, "position_3d_points": {"points"}}
    assert fusion.needs == needs.get(variant, set())
    assert fusion.traits.train_only is (variant == "align_loss")
    assert fusion.request == (VLMRequest(layers=(2,)) if variant == "align_loss" else VLMRequest())


@pytest.mark.parametrize("variant", STARTS_AT_VISION)
def test_starts_at_the_vision_only_policy(variant, dims, inputs):
    fused = inputs.run(build(variant, dims, awake=False))
    assert torch.equal(fused.visual.tokens, inputs.visual.tokens)


@ALL
def test_no_dead_parameters(variant, dims, inputs):
    """Zero starts open within two steps; then everything learns."""
    fusion = build(variant, dims, awake=False)
    optimizer = torch.optim.SGD(fusion.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        weights = torch.Generator().manual_seed(0)
        sum((x * torch.randn(x.shape, generator=weights)).sum() for x in inputs.outputs(fusion)).backward()
        optimizer.step()
    dead = [n for n, p in fusion.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-7]
    assert dead == []


@ALL
def test_geometry_of_another_sample_changes_the_answer(variant, dims, inputs):
    fusion = build(variant, dims)
    base, tokens = inputs.outputs(fusion), inputs.run(fusion).visual.tokens
    inputs.shuffle_rows()
    assert differ(base, inputs.outputs(fusion))
    if variant == "align_loss":  # only the loss sees it
        assert torch.equal(tokens, inputs.run(fusion).visual.tokens)


@ALL
def test_where_geometry_is_matters(variant, dims, inputs):
    fusion = build(variant, dims)
    base = inputs.outputs(fusion)
    inputs.permute_positions()
    assert differ(base, inputs.outputs(fusion)) is (variant not in POSITION_FREE)


@ALL
@pytest.mark.parametrize("value", [1e4, float("nan"), 0.0])
def test_missing_views_have_no_influence(variant, dims, inputs, value):
    fusion = build(variant, dims)
    inputs.hide_view(1, 1)
    base = inputs.outputs(fusion)
    everything = inputs.run(fusion).visual.tokens
    inputs.spoil_view(1, 1, value)
    assert not differ(base, inputs.outputs(fusion), tolerance=0.0)
    assert torch.equal(everything, inputs.run(fusion).visual.tokens)
    inputs.hide_view(1, 0)  # a row without any view stays finite, also its gradient
    outputs = inputs.outputs(fusion)
    assert all(x.isfinite().all() for x in outputs)
    loss = sum(x.square().sum() for x in outputs)
    if loss.requires_grad:
        loss.backward()
    assert all(p.grad.isfinite().all() for p in fusion.parameters() if p.grad is not None)


@ALL
def test_rows_do_not_mix(variant, dims, inputs):
    fusion = build(variant, dims)
    outputs = inputs.outputs(fusion)
    inputs.spoil_view(0, 0, 3.0)
    for a, b in zip(outputs, inputs.outputs(fusion), strict=True):
        if a.ndim:
            assert torch.equal(a[1:], b[1:])


@ALL
@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1)])
def test_any_geometry_grid(variant, dims, inputs_of, grid):
    assert all(x.isfinite().all() for x in inputs_of(grid).outputs(build(variant, dims)))


@pytest.mark.parametrize("variant", READS_TEXT)
def test_the_instruction_matters_and_is_demanded(variant, dims, inputs):
    fusion = build(variant, dims)
    base = inputs.outputs(fusion)
    inputs.text.embeds[:, 14] += 1.0  # text, but not the instruction
    assert not differ(base, inputs.outputs(fusion), tolerance=0.0)
    inputs.text.embeds[:, 16, 0] += 3.0
    assert differ(base, inputs.outputs(fusion))
    inputs.text.instruction_mask[1] = False
    assert all(x.isfinite().all() for x in inputs.outputs(fusion))
    with pytest.raises(UserError, match="text: missing"):
        fusion(inputs.visual, inputs.geometry, None, inputs.cameras)
    inputs.text.embeds = inputs.text.embeds[..., :8]
    with pytest.raises(UserError, match=r"text\.embeds: 8 channels"):
        inputs.run(fusion)


@ALL
def test_bf16(variant, dims, inputs):
    fusion = build(variant, dims)
    exact = inputs.outputs(fusion)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = inputs.outputs(fusion)
    half = inputs.to(torch.bfloat16)
    fusion = fusion.to(torch.bfloat16)
    assert half.run(fusion).visual.tokens.dtype == torch.bfloat16
    assert inputs.run(fusion).visual.tokens.dtype == torch.float32  # a bf16 fusion keeps fp32 tokens
    for a, b, c in zip(exact, mixed, half.outputs(fusion), strict=True):
        scale = a.abs().max()
        assert (a - b.float()).abs().max() < 0.15 * scale
        assert (a - c.float()).abs().max() < 0.15 * scale


class NoSync(TorchDispatchMode):
    """Refuses the operations that make the host wait for the device."""

    bad = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.bad), name
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), "boolean index"
        return func(*args, **(kwargs or {}))


@ALL
def test_never_waits_for_the_device(variant, dims, inputs):
    fusion = build(variant, dims)
    layer = fusion.request.layers[0] if fusion.request.layers else 0
    out = inputs.out(layer)
    with NoSync():
        fused = inputs.run(fusion)
        terms = fusion.loss(out, inputs.geometry)
        (fused.visual.tokens.sum() + sum(terms.values())).requires_grad_(True).backward()
    # On the meta device there are no values: nothing can depend on them, and no constant lies elsewhere.
    assert inputs.to("meta").run(fusion.to("meta")).visual.tokens.shape == (3, 12, 16)


@ALL
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 3, 2, 3, 12), r"geometry\.tokens: 3 views, visual\.grid has 2"),
        ((2, 2, 2, 3, 12), r"geometry\.tokens: 2 rows"),
        ((3, 2, 2, 3, 7), r"geometry\.tokens: 7 channels"),
        ((3, 12, 12), r"geometry\.tokens: shape \[3, 12, 12\]"),
    ],
)
def test_mismatches_name_the_field(variant, dims, inputs, shape, message):
    fusion = build(variant, dims)
    inputs.geometry = GeometryFeatures(torch.randn(shape))
    with pytest.raises(UserError, match=message) as error:
        inputs.run(fusion)
    assert "\n" not in str(error.value)


@ALL
def test_token_count_must_match_the_grid(variant, dims, inputs):
    inputs.visual = dataclasses.replace(inputs.visual, grid=(2, 3, 3))
    with pytest.raises(UserError, match=r"visual\.tokens: 12 tokens, but visual\.grid \(2, 3, 3\) has 18"):
        inputs.run(build(variant, dims))
