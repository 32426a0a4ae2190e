"""A batch of rows with and without what is known of their cameras equals these rows computed alone.

What is not known holds numbers that would be noticed: they must never be taken as values.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from vla_core.batch import Cameras, Known
from vla_core.interfaces import VisualTokens
from vla_geometry import MapAnythingEncoder, Position3D, TinyGeometryEncoder
from vla_geometry.points import patch_points
from vla_geometry.rays import ray_directions

ENCODERS = {
    "tiny": (TinyGeometryEncoder, {"encoder_depth": 1, "sharing_depth": 2}),
    "mapanything": (MapAnythingEncoder, {"size": "tiny"}),
}
VIEWS, SIDE = 2, 28
FIELDS = ("intrinsics", "extrinsics", "depth")


def cameras(rows):
    g = torch.Generator().manual_seed(3)
    focal = 15 + 10 * torch.rand(rows, VIEWS, generator=g)
    intrinsics = torch.eye(3).repeat(rows, VIEWS, 1, 1)
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = focal
    intrinsics[..., :2, 2] = SIDE / 2
    extrinsics = torch.eye(4).repeat(rows, VIEWS, 1, 1)
    extrinsics[..., :3, 3] = torch.rand(rows, VIEWS, 3, generator=g)
    depth = 0.5 + torch.rand(rows, VIEWS, SIDE, SIDE, generator=g)
    return Cameras(intrinsics, extrinsics, depth)


def mixed(**known):
    """Cameras of rows of which some lack something: there stands what another view has, not zeros."""
    made = cameras(len(next(iter(known.values()))))
    return replace(made, known=Known(**{name: torch.tensor(mask) for name, mask in known.items()}))


def row(made, i):
    """The cameras of a row alone, as they are when there is only it: None where no view has a field."""
    fields, known = {}, {}
    for name in FIELDS:
        value, mask = getattr(made, name)[i : i + 1], getattr(made.known, name)
        mask = None if mask is None else mask[i : i + 1]
        some = mask is None or bool(mask.any())
        fields[name] = value if some else None
        known[name] = mask if some and mask is not None and not mask.all() else None
    return Cameras(**fields, known=Known(**known))


def encoder(name, **options):
    cls, small = ENCODERS[name]
    torch.manual_seed(0)
    return cls.build(cls.Config(**small, **options), VIEWS, (SIDE, SIDE)).eval()


@pytest.mark.parametrize("name", list(ENCODERS))
@torch.no_grad()
def test_encoders_read_the_intrinsics_that_are_known(name):
    made = mixed(intrinsics=[[True, True], [False, False], [True, False]])
    model = encoder(name)
    images = torch.randint(0, 256, (3, VIEWS, 3, SIDE, SIDE), dtype=torch.uint8)
    together = model(images, made, frozenset({"depth"}))
    for i in range(3):
        alone = model(images[i : i + 1], row(made, i), frozenset({"depth"}))
        torch.testing.assert_close(together.tokens[i : i + 1], alone.tokens, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(together.depth[i : i + 1], alone.depth, atol=2e-5, rtol=1e-4)
    everything = model(images, replace(made, known=Known()))
    assert not torch.allclose(everything.tokens[1], together.tokens[1], atol=1e-3)


@pytest.mark.parametrize("name", list(ENCODERS))
@torch.no_grad()
def test_all_known_is_bit_equal_to_no_masks(name):
    every = torch.ones(2, VIEWS, dtype=torch.bool)
    images = torch.randint(0, 256, (2, VIEWS, 3, SIDE, SIDE), dtype=torch.uint8)
    made, model = cameras(2), encoder(name)
    masked = replace(made, known=Known(every, every, every))
    assert torch.equal(model(images, made).tokens, model(images, masked).tokens)
    plain = patch_points(made.depth, made.intrinsics, made.extrinsics, (2, 2))
    with_masks = patch_points(made.depth, made.intrinsics, made.extrinsics, (2, 2), masked.known)
    assert all(torch.equal(a, b) for a, b in zip(plain, with_masks, strict=True))


@pytest.mark.parametrize("name", list(ENCODERS))
@torch.no_grad()
def test_kept_views_know_nothing_of_intrinsics(name):
    """The picture of a camera that stands still may come once with its intrinsics and once without."""
    model = encoder(name, cache_mib=8)
    images = torch.randint(0, 256, (1, VIEWS, 3, SIDE, SIDE), dtype=torch.uint8)
    keys = (("a", "b"),)
    known = mixed(intrinsics=[[True, False]])
    first = model(images, replace(cameras(1), view_keys=keys)).tokens
    second = model(torch.zeros_like(images), replace(known, view_keys=keys)).tokens
    assert model.cache.hits == 2
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, model(images, known).tokens, atol=1e-5, rtol=1e-5)


def visual(rows):
    tokens = torch.randn(rows, VIEWS * 4, 16, generator=torch.Generator().manual_seed(1))
    return VisualTokens(tokens, torch.ones(rows, VIEWS * 4, dtype=torch.bool), (VIEWS, 2, 2))


SOME = [[True, True], [False, False], [True, False]]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("frame", ["auto", "world", "camera"])
@pytest.mark.parametrize("depth", ["camera", "geometry"])
@torch.no_grad()
def test_position_3d_adds_nothing_to_a_view_that_lacks_something(dims, inputs, field, frame, depth):
    fusion = Position3D.build(Position3D.Config(depth=depth, frame=frame), dims)
    for parameter in fusion.parameters():
        parameter.normal_()
    made, seen = mixed(**{field: SOME}), visual(3)
    geometry = replace(inputs.geometry, tokens=inputs.geometry.tokens[:3], depth=cameras(3).depth + 1)
    added = fusion(seen, geometry, None, made).visual.tokens - seen.tokens
    touched = added.unflatten(1, (VIEWS, 4)).abs().amax(dim=(2, 3)) > 0
    read = {"depth": depth == "camera", "extrinsics": frame == "world", "intrinsics": True}[field]
    assert touched.tolist() == (SOME if read else [[True, True]] * 3)
    for i in (0, 2):
        alone = replace(seen, tokens=seen.tokens[i : i + 1], mask=seen.mask[i : i + 1])
        one = replace(geometry, tokens=geometry.tokens[i : i + 1], depth=geometry.depth[i : i + 1])
        of_row = row(made, i)
        if field == "extrinsics" and frame == "auto" and i == 2:
            of_row = replace(of_row, extrinsics=None, known=Known())  # not all of its views: own frames
        got = fusion(alone, one, None, of_row).visual.tokens - alone.tokens
        torch.testing.assert_close(added[i : i + 1], got, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_auto_looks_at_the_views_that_are_there(dims, inputs):
    fusion = Position3D.build(Position3D.Config(frame="auto"), dims)
    for parameter in fusion.parameters():
        parameter.normal_()
    made, seen = mixed(extrinsics=SOME), visual(3)
    seen.mask[2, 4:] = False  # the view without a pose: all that are there have one
    added = fusion(seen, inputs.geometry, None, made).visual.tokens - seen.tokens
    world = fusion(seen, inputs.geometry, None, replace(made, known=Known())).visual.tokens - seen.tokens
    assert torch.equal(added[2, :4], world[2, :4])
    assert not torch.allclose(added[1], world[1], atol=1e-3)


def test_what_is_not_known_reaches_no_gradient():
    made = mixed(depth=[[True, False]])
    made.depth[0, 1] = float("nan")
    intrinsics = made.intrinsics.requires_grad_()
    points, known = patch_points(made.depth, intrinsics, made.extrinsics, (2, 2), made.known)
    points.sum().backward()
    assert intrinsics.grad.isfinite().all()
    assert not intrinsics.grad[0, 1].any()
    assert known.any(dim=-1).any(dim=-1).tolist() == [[True, False]]
    rays, usable = ray_directions(made.intrinsics.detach(), (4, 4), torch.tensor([[False, True]]))
    assert usable.tolist() == [[False, True]]
    assert not rays[0, 0].any()
