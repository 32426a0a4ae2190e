import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from vla_core.batch import Cameras
from vla_core.config import build_config
from vla_core.errors import ConfigError, UserError
from vla_core.interfaces import GeometryEncoder
from vla_core.registry import load
from vla_geometry import TinyGeometryConfig, TinyGeometryEncoder
from vla_geometry.rays import ray_directions

SMALL = TinyGeometryConfig(
    encoder_dim=16, encoder_depth=1, dim=24, sharing_depth=2, head_dim=8, n_registers=2
)
SIZE = (28, 42)  # a grid of 2 x 3


def build(n_views=2, size=SIZE, **changes):
    return TinyGeometryEncoder.build(dataclasses.replace(SMALL, **changes), n_views, size)


def pictures(rows=2, views=2):
    return torch.randint(0, 256, (rows, views, 3, *SIZE), dtype=torch.uint8)


def pinhole(focal, rows=2, views=2):
    matrix = torch.tensor([[focal, 0.0, 21.0], [0.0, focal, 14.0], [0.0, 0.0, 1.0]])
    return Cameras(intrinsics=matrix.expand(rows, views, 3, 3).clone())


def test_shapes_and_protocol():
    encoder = build()
    assert isinstance(encoder, GeometryEncoder)
    assert load("vla.geometry", "tiny") is TinyGeometryEncoder
    assert build_config(TinyGeometryEncoder.Config, {"dim": 64}, "geometry").dim == 64
    features = encoder(pictures(), None)
    assert encoder.dim == 24
    assert features.tokens.shape == (2, 2, 2, 3, 24)
    assert features.registers.shape == (2, 1 + 2 * 2, 24)
    assert features.depth is features.points is None


def test_dense_heads_run_only_when_asked():
    encoder = build()
    calls = []
    for name in ("depth", "points"):
        getattr(encoder.dense, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    encoder(pictures(), None)
    assert calls == []
    features = encoder(pictures(), None, frozenset({"depth"}))
    assert calls == ["depth"]
    assert features.depth.shape == (2, 2, *SIZE)
    assert (features.depth > 0).all()
    assert features.points is None
    features = encoder(pictures(), None, frozenset({"depth", "points"}))
    assert features.points.shape == (2, 2, *SIZE, 3)


def test_depth_patches_lie_where_their_tokens_are():
    dense = build(patch_size=14).dense
    tokens = torch.zeros(1, 1, 2, 3, 24)
    base = dense.predict_depth(tokens, torch.zeros(1, 24))
    tokens[0, 0, 1, 2] = 1.0
    changed = dense.predict_depth(tokens, torch.zeros(1, 24)) != base
    assert changed[0, 0, 14:, 28:].all()
    assert changed.sum() == 14 * 14


@pytest.mark.parametrize(
    ("size", "message"),
    [((224, 225), "resize the images to 224 x 224"), ((5, 28), "resize the images to 14 x 28")],
)
def test_image_size_must_be_whole_patches(size, message):
    with pytest.raises(ConfigError, match=message) as error:
        build(size=size)
    assert str(error.value).startswith(f"image_size: {size[0]} x {size[1]}")
    assert "\n" not in str(error.value)
    assert build(size=(32, 48), patch_size=16).grid == (2, 3)


def test_uint8_and_unit_floats_agree():
    encoder, images = build(), pictures()
    from_bytes, from_floats = encoder(images), encoder(images.float() / 255)
    assert torch.allclose(from_bytes.tokens, from_floats.tokens, atol=1e-5)
    with pytest.raises(UserError, match=r"images: dtype torch\.int64"):
        encoder(images.long())


def test_intrinsics_change_the_features_and_absence_is_not_identity():
    encoder, images = build(), pictures()
    without, empty = encoder(images, None).tokens, encoder(images, Cameras()).tokens
    wide, tele = (encoder(images, pinhole(f)).tokens for f in (20.0, 80.0))
    identity = encoder(images, Cameras(intrinsics=torch.eye(3).expand(2, 2, 3, 3))).tokens
    assert torch.equal(without, empty)
    for a, b in ((without, wide), (without, tele), (wide, tele), (without, identity)):
        assert not torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_a_view_without_usable_intrinsics_counts_as_unknown(bad):
    encoder, images = build(), pictures(rows=1)
    cameras = Cameras(intrinsics=torch.full((1, 2, 3, 3), bad))
    assert torch.equal(encoder(images, cameras).tokens, encoder(images).tokens)
    half = pinhole(30.0, rows=1)
    half.intrinsics[:, 1] = bad
    tokens = encoder(images, half).tokens
    assert tokens.isfinite().all()
    assert not torch.allclose(tokens, encoder(images).tokens, atol=1e-4)


def test_rays():
    cameras = pinhole(10.0, rows=1, views=1)
    rays, known = ray_directions(cameras.intrinsics, SIZE)
    assert known.all()
    assert torch.allclose(rays.norm(dim=2), torch.ones(1, 1, *SIZE))
    # Pixel (row 13, col 20) has its centre at (20.5, 13.5): half a pixel left of and above the axis.
    expected = torch.tensor([-0.05, -0.05, 1.0])
    assert torch.allclose(rays[0, 0, :, 13, 20], expected / expected.norm(), atol=1e-6)


def test_views_see_each_other_and_rows_do_not():
    encoder, images = build(), pictures()
    base = encoder(images)
    moved = images.clone()
    moved[0, 1] = 255 - moved[0, 1]
    other = encoder(moved)
    assert not torch.allclose(base.tokens[0, 0], other.tokens[0, 0], atol=1e-5)
    assert not torch.allclose(base.registers[0, 0], other.registers[0, 0], atol=1e-5)
    assert torch.allclose(base.tokens[1], other.tokens[1], atol=1e-6)
    swapped = encoder(images.flip(1)).tokens.flip(1)
    assert not torch.allclose(base.tokens, swapped, atol=1e-5)  # the first view defines the frame


@pytest.mark.parametrize("intrinsics", [True, False])
def test_a_missing_view_is_seen_by_no_other(intrinsics):
    encoder, images, needs = build(), pictures(), frozenset({"depth"})
    cameras = pinhole(30.0) if intrinsics else Cameras()
    everything = encoder(images, cameras, needs)
    cameras.view_mask = torch.ones(2, 2, dtype=torch.bool)
    assert torch.allclose(encoder(images, cameras, needs).tokens, everything.tokens, atol=1e-5)
    cameras.view_mask[0, 1] = False
    base = encoder(images, cameras, needs)
    assert not torch.allclose(base.tokens[0, 0], everything.tokens[0, 0], atol=1e-5)
    assert torch.allclose(base.tokens[1], everything.tokens[1], atol=1e-5)
    images[0, 1] = 255 - images[0, 1]
    other = encoder(images, cameras, needs)
    assert torch.equal(base.tokens[0, 0], other.tokens[0, 0])
    assert torch.equal(base.registers[0, :3], other.registers[0, :3])  # the scale token and the first view's
    assert torch.equal(base.depth[0, 0], other.depth[0, 0])
    cameras.view_mask[:] = False
    assert encoder(images, cameras).tokens.isfinite().all()


def test_frozen_unless_trainable():
    frozen, images = build(), pictures()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen(images).tokens.requires_grad
    trained = build(trainable=True)
    features = trained(images, pinhole(30.0), frozenset({"depth", "points"}))
    loss = sum(x.square().sum() for x in (features.tokens, features.registers, features.depth))
    (loss + features.points.square().sum() + features.tokens.sum()).backward()
    dead = [name for name, p in trained.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_bf16():
    features = build().to(torch.bfloat16)(pictures(), pinhole(30.0), frozenset({"depth"}))
    assert features.tokens.dtype == torch.bfloat16
    assert features.depth.dtype == torch.float32
    assert features.tokens.isfinite().all()


def test_weights_round_trip_and_strictness(tmp_path):
    encoder, path = build(), tmp_path / "geometry.safetensors"
    save_file(encoder.state_dict(), path)
    again = build(weights=str(path))
    images = pictures()
    assert torch.equal(encoder(images).tokens, again(images).tokens)
    config = dataclasses.replace(SMALL, weights="nowhere.safetensors")
    TinyGeometryEncoder.build(config, 2, SIZE, weights=False)  # a checkpoint brings them
    with pytest.raises(ConfigError, match="no file 'nowhere"):
        TinyGeometryEncoder.build(config, 2, SIZE)
    state = encoder.state_dict()
    state["extra"] = state.pop("position")
    state["registers"] = torch.zeros(3, 16)
    save_file(state, path)
    with pytest.raises(
        ConfigError, match=r"missing: position; unexpected: extra; .*registers \[3, 16\]"
    ) as e:
        build(weights=str(path))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e(pictures(views=1)), r"images: shape \[2, 1, 3, 28, 42\] must be \[B, 2, 3, 28, 42\]"),
        (lambda e: e(pictures(), pinhole(9.0, views=1)), r"cameras\.intrinsics: shape \[2, 1, 3, 3\]"),
        (lambda e: e(pictures(), Cameras(intrinsics=torch.eye(3))), r"cameras\.intrinsics: shape \[3, 3\]"),
        (lambda e: e(pictures(), None, frozenset({"normals"})), "needs: unknown"),
    ],
)
def test_bad_input_names_the_field(call, message):
    with pytest.raises(UserError, match=message):
        call(build())


def test_bad_config_names_the_key():
    with pytest.raises(ConfigError, match="dim: 20 must be a multiple of head_dim 8"):
        dataclasses.replace(SMALL, dim=20)
    with pytest.raises(ConfigError, match="patch_size: must be >= 1"):
        dataclasses.replace(SMALL, patch_size=0)
    with pytest.raises(UserError, match=r"geometry\.dense_heads is false"):
        build(dense_heads=False)(pictures(), None, frozenset({"depth"}))
