import dataclasses

import pytest
import torch
from vla_core.errors import UserError
from vla_core.interfaces import Fusion, FusionDims, GeometryFeatures, VisualTokens
from vla_core.registry import load
from vla_geometry import AlignedConcat, MeanPool
from vla_geometry.fusions.aligned_concat import resample

B, V, GRID, H, C = 3, 2, (2, 3), 16, 10
DIMS = FusionDims(hidden_size=H, geometry_dim=C, n_layers=2)
BOTH = pytest.mark.parametrize("cls", [MeanPool, AlignedConcat])


def build(cls, awake=True):
    """With ``awake``, as after some training: the geometry half no longer zero."""
    fusion = cls.build(cls.Config(), DIMS)
    if awake:
        with torch.no_grad():
            fusion.out.weight.add_(0.1 * torch.randn_like(fusion.out.weight))
    return fusion


def vision():
    n = V * GRID[0] * GRID[1]
    return VisualTokens(torch.randn(B, n, H), torch.ones(B, n, dtype=torch.bool), (V, *GRID))


def geometry(grid=GRID):
    return GeometryFeatures(torch.randn(B, V, *grid, C))


def fuse(fusion, visual, features):
    return fusion(visual, features, None, None).visual.tokens


@pytest.mark.parametrize(("name", "cls"), [("mean_pool", MeanPool), ("aligned_concat", AlignedConcat)])
def test_found_by_name(name, cls):
    assert load("vla.fusions", name) is cls
    fusion = build(cls)
    assert isinstance(fusion, Fusion)
    assert fusion.context_dim is None
    assert fusion.loss(None, geometry()) == {}


@BOTH
def test_starts_at_the_vision_only_policy(cls):
    visual = vision()
    fused = build(cls, awake=False)(visual, geometry(), None, None)
    assert torch.equal(fused.visual.tokens, visual.tokens)
    assert fused.visual.mask is visual.mask
    assert fused.visual.grid == visual.grid
    assert fused.prefix is fused.context is None


@BOTH
def test_gradient_reaches_every_parameter_after_one_step(cls):
    fusion, visual, features = build(cls, awake=False), vision(), geometry()
    optimizer = torch.optim.SGD(fusion.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        fuse(fusion, visual, features).square().sum().backward()
        optimizer.step()
    assert all(p.grad.any() for p in fusion.parameters())


@BOTH
@pytest.mark.parametrize("grid", [(2, 3), (4, 6), (3, 5), (1, 1)])
def test_any_geometry_grid(cls, grid):
    assert fuse(build(cls), vision(), geometry(grid)).shape == (B, 12, H)


@BOTH
def test_geometry_of_another_sample_changes_the_answer(cls):
    fusion, visual, features = build(cls), vision(), geometry()
    shuffled = GeometryFeatures(features.tokens.roll(1, dims=0))
    assert not torch.allclose(fuse(fusion, visual, features), fuse(fusion, visual, shuffled), atol=1e-4)


@pytest.mark.parametrize(("cls", "invariant"), [(MeanPool, True), (AlignedConcat, False)])
def test_permuting_geometry_positions(cls, invariant):
    fusion, visual, features = build(cls), vision(), geometry()
    order = torch.randperm(12)
    permuted = GeometryFeatures(features.tokens.flatten(1, 3)[:, order].view_as(features.tokens))
    same = torch.allclose(fuse(fusion, visual, features), fuse(fusion, visual, permuted), atol=1e-5)
    assert same is invariant


def test_aligned_concat_touches_only_its_own_place():
    fusion, visual, features = build(AlignedConcat), vision(), geometry()
    base = fuse(fusion, visual, features)
    features.tokens[0, 1, 0, 2] += 1.0  # view 1, row 0, column 2 -> token 6 + 2
    assert (base != fuse(fusion, visual, features)).any(dim=-1).nonzero().tolist() == [[0, 8]]


def test_resampling_keeps_places():
    ramp = torch.arange(8.0).view(1, 1, 1, 8, 1).expand(1, 2, 4, 8, 1)
    down = resample(ramp, 2, 4)
    assert torch.allclose(down[0, 0, 0, :, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]), atol=0.3)
    assert (down.diff(dim=3) > 0).all()
    up = resample(ramp, 4, 16)
    assert torch.allclose(up[0, 1, 0, 1:-1, 0], torch.arange(1, 15) / 2 - 0.25, atol=1e-5)


@pytest.mark.parametrize("fill", [1e6, float("nan")])
def test_missing_views_stay_out_of_the_mean(fill):
    fusion, visual, features = build(MeanPool), vision(), geometry()
    visual.mask[1, 6:] = False  # row 1 lacks its second view
    base = fuse(fusion, visual, features)
    features.tokens[1, 1] = fill
    assert torch.equal(base, fuse(fusion, visual, features))
    visual.mask[1] = False
    assert fuse(fusion, visual, features).isfinite().all()
    # A row with one view left has that view's mean.
    visual.mask[2, :6] = False
    alone = dataclasses.replace(features, tokens=features.tokens[:, 1:].expand(-1, 2, -1, -1, -1))
    everything = dataclasses.replace(visual, mask=torch.ones_like(visual.mask))
    left, right = fuse(fusion, visual, features)[2], fuse(fusion, everything, alone)[2]
    assert torch.allclose(left, right, atol=1e-5)


@BOTH
def test_bf16_weights_keep_the_token_dtype(cls):
    fusion, visual = build(cls).to(torch.bfloat16), vision()
    assert fuse(fusion, visual, geometry()).dtype == torch.float32
    visual.tokens = visual.tokens.bfloat16()
    assert fuse(fusion, visual, geometry((4, 6))).dtype == torch.bfloat16


@BOTH
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((B, 3, 2, 3, C), r"geometry\.tokens: 3 views, visual\.grid has 2"),
        ((2, V, 2, 3, C), r"geometry\.tokens: 2 rows"),
        ((B, V, 2, 3, 7), r"geometry\.tokens: 7 channels"),
        ((B, 12, C), r"geometry\.tokens: shape \[3, 12, 10\]"),
    ],
)
def test_mismatches_name_the_field(cls, shape, message):
    with pytest.raises(UserError, match=message):
        fuse(build(cls), vision(), GeometryFeatures(torch.randn(shape)))


@BOTH
def test_token_count_must_match_the_grid(cls):
    visual = dataclasses.replace(vision(), grid=(V, 3, 3))
    with pytest.raises(UserError, match=r"visual\.tokens: 12 tokens, but visual\.grid \(2, 3, 3\) has 18"):
        fuse(build(cls), visual, geometry())
