import dataclasses
import re

import pytest
import torch
from safetensors.torch import save_file
from vla_core.assemble import build_policy
from vla_core.batch import Cameras
from vla_core.config import build_config
from vla_core.errors import ConfigError, UserError
from vla_core.framework import FrameworkConfig
from vla_core.interfaces import GeometryEncoder
from vla_core.policy import VLAPolicy
from vla_core.registry import load, override
from vla_core.testing import FakeHead, make_spec, register_fakes
from vla_geometry.mapanything import MapAnythingConfig, MapAnythingEncoder
from vla_geometry.mapanything.loading import FILE, NOT_BUILT, published_name
from vla_geometry.mapanything.sizes import SIZES

SIZE = (28, 42)  # a grid of 2 x 3
TINY = MapAnythingConfig(size="tiny")
SPEC = make_spec()


def build(image_size=SIZE, **changes):
    return MapAnythingEncoder.build(dataclasses.replace(TINY, **changes), 2, image_size)


def pictures(rows=2, views=2):
    return torch.randint(0, 256, (rows, views, 3, *SIZE), dtype=torch.uint8)


def pinhole(focal, rows=2, views=2):
    matrix = torch.tensor([[focal, 0.0, 21.0], [0.0, focal, 14.0], [0.0, 0.0, 1.0]])
    return Cameras(intrinsics=matrix.expand(rows, views, 3, 3).clone())


def published(encoder):
    """The encoder's weights as a published file holds them, with one tensor of each part not built."""
    state = {published_name(name): tensor.clone() for name, tensor in encoder.state_dict().items()}
    return state | {f"{prefix}weight": torch.zeros(1) for prefix in NOT_BUILT}


@pytest.fixture
def stored(tmp_path):
    """A directory with weights of size ``tiny``, and the encoder they come from."""
    encoder = build()
    save_file(published(encoder), tmp_path / FILE)
    return tmp_path, encoder


def same(a, b):
    images = pictures()
    return torch.equal(a(images, pinhole(30.0)).tokens, b(images, pinhole(30.0)).tokens)


@pytest.mark.parametrize(("size", "registers"), [("tiny", 1 + 2), ("tiny_v1", 1)])
def test_shapes_and_protocol(size, registers):
    encoder = build(size=size)
    assert isinstance(encoder, GeometryEncoder)
    features = encoder(pictures(), None)
    assert encoder.dim == SIZES[size].dim
    assert features.tokens.shape == (2, 2, 2, 3, encoder.dim)
    assert features.registers.shape == (2, registers, encoder.dim)
    assert features.depth is features.points is None


def test_entry_point_and_config():
    assert load("vla.geometry", "mapanything") is MapAnythingEncoder
    config = build_config(MapAnythingEncoder.Config, {"size": "large", "bf16": True}, "geometry")
    assert config.size == "large"
    with pytest.raises(ConfigError, match=r"geometry\.size: no size 'gigant' \(did you mean 'giant'\?\)"):
        MapAnythingConfig(size="gigant")
    with pytest.raises(ConfigError, match=r"geometry\.bf16: .*set geometry\.trainable to false"):
        MapAnythingConfig(bf16=True, trainable=True)


@pytest.mark.parametrize(("name", "parameters"), [("giant", 1.1949e9), ("large", 0.53135e9)])
def test_published_sizes(name, parameters):
    with torch.device("meta"):
        encoder = MapAnythingEncoder(MapAnythingConfig(size=name), 2, (224, 224))
    assert encoder.grid == (16, 16)
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(parameters, rel=1e-3)


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


def test_views_see_each_other_and_rows_do_not():
    encoder, images = build(), pictures()
    base, moved = encoder(images), images.clone()
    moved[0, 1] = 255 - moved[0, 1]
    other = encoder(moved)
    assert not torch.allclose(base.tokens[0, 0], other.tokens[0, 0], atol=1e-5)
    assert not torch.allclose(base.registers[0, 0], other.registers[0, 0], atol=1e-5)
    assert torch.allclose(base.tokens[1], other.tokens[1], atol=1e-6)
    swapped = encoder(images.flip(1)).tokens.flip(1)
    assert not torch.allclose(base.tokens, swapped, atol=1e-5)  # the first view defines the frame


def test_a_missing_view_is_seen_by_no_other():
    encoder, images, needs = build(), pictures(), frozenset({"depth"})
    cameras = pinhole(30.0)
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
    assert torch.equal(base.registers[0, :2], other.registers[0, :2])  # the scale token and the first view's
    assert torch.equal(base.depth[0, 0], other.depth[0, 0])
    cameras.view_mask[:] = False
    assert encoder(images, cameras).tokens.isfinite().all()


def test_dense_heads_run_only_when_asked():
    encoder, images, calls = build(), pictures(), []
    for name in ("dense_head.0", "scale_head", "pose_head"):
        encoder.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    plain = encoder(images)
    assert calls == []
    assert plain.depth is plain.points is None
    features = encoder(images, None, frozenset({"depth"}))
    assert calls == ["scale_head", "dense_head.0"]
    assert torch.equal(plain.tokens, features.tokens)
    assert features.depth.shape == (2, 2, *SIZE)
    assert features.points is None
    both = encoder(images, None, frozenset({"depth", "points"}))
    assert "pose_head" in calls
    assert torch.equal(both.depth, features.depth)
    assert both.points.shape == (2, 2, *SIZE, 3)
    assert both.depth.dtype == both.points.dtype == torch.float32
    assert both.points.isfinite().all()
    only = encoder(images, None, frozenset({"points"}))
    assert only.depth is None
    assert torch.equal(only.points, both.points)
    with pytest.raises(ConfigError, match=r"tokens only, as geometry\.dense_heads is false"):
        build(dense_heads=False)(images, None, frozenset({"depth"}))


def test_points_are_depth_seen_from_the_first_camera():
    """With poses that the head is made to give: the identity, then a quarter turn and a step to the right."""
    encoder, images, needs = build(), pictures(), frozenset({"depth", "points"})
    head = encoder.pose_head
    for layer in (head.fc_t, head.fc_rot):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    head.fc_rot.bias[3] = 2.0  # any length
    camera = encoder(images, None, needs)
    assert torch.allclose(camera.points[..., 2], camera.depth, atol=1e-6)
    head.fc_rot.bias[1] = 2.0  # about the y axis: z becomes x
    head.fc_t.bias[0] = 0.5
    world = encoder(images, None, needs)
    step = (world.points[..., 0] - camera.points[..., 2]).flatten(1)
    assert torch.allclose(step, step[:, :1].expand_as(step), atol=1e-5)  # in metres by the scale of the row
    assert (step > 0).all()
    assert torch.allclose(world.points[..., 1], camera.points[..., 1], atol=1e-5)
    assert torch.allclose(world.points[..., 2], -camera.points[..., 0], atol=1e-5)
    assert torch.equal(world.depth, camera.depth)


def test_frozen_unless_trainable():
    frozen, images = build(), pictures()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen(images).tokens.requires_grad
    trained = build(trainable=True)
    features = trained(images, pinhole(30.0), frozenset({"depth", "points"}))
    loss = features.tokens.square().sum() + features.tokens.sum() + features.registers.sum()
    (loss + features.depth.square().sum() + features.points.square().sum()).backward()
    dead = [name for name, p in trained.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_bf16_outlives_a_change_of_the_policys_dtype(stored):
    path, encoder = stored
    half = build(weights=str(path), bf16=True).to(torch.float32)
    assert half.encoder.cls_token.dtype == half.info_sharing.norm.weight.dtype == torch.bfloat16
    assert half.fusion_norm_layer.weight.dtype == half.ray_dirs_encoder.conv_in.weight.dtype == torch.float32
    images = pictures()
    rounded, exact = (half(images, pinhole(30.0)).tokens, encoder(images, pinhole(30.0)).tokens)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()
    assert build().to(torch.bfloat16)(images, pinhole(30.0)).tokens.dtype == torch.bfloat16


def test_weights_from_a_file_a_directory_and_a_checkpoint(stored):
    path, encoder = stored
    assert same(encoder, build(weights=str(path)))
    assert same(encoder, build(weights=str(path / FILE)))
    empty = MapAnythingEncoder.build(dataclasses.replace(TINY, weights="no/where"), 2, SIZE, weights=False)
    empty.load_state_dict(encoder.state_dict())  # a checkpoint brings them
    assert same(encoder, empty)


def test_weights_by_hub_id_from_the_cache(stored, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    path, encoder = stored
    cached = tmp_path / "hub" / "models--facebook--map-anything"
    snapshot = cached / "snapshots" / ("0" * 40)
    for folder in (cached / "refs", snapshot):
        folder.mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (path / FILE).rename(snapshot / FILE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(encoder, build(weights="facebook/map-anything"))
    assert same(encoder, build(weights="facebook/map-anything", revision="0" * 40))
    with pytest.raises(ConfigError, match=r"'facebook/absent' is no local path, and model\.safetensors") as e:
        build(weights="facebook/absent")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["nowhere.safetensors", "a/nowhere.safetensors", "/a/b", "./a"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ConfigError, match=r"geometry\.weights: no file"):
        build(weights=name)


def test_strictness_lists_the_keys(stored):
    path, encoder = stored
    state = published(encoder)
    state["encoder.model.extra"] = state.pop("encoder.model.cls_token")
    state["scale_token"] = torch.zeros(3)
    save_file(state, path / FILE)
    with pytest.raises(ConfigError) as error:
        build(weights=str(path))
    for part in (
        "missing: encoder.model.cls_token",
        "unexpected: encoder.model.extra",
        "of another shape: scale_token [3] instead of [64]",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dense_heads", [False, True])
def test_the_depth_head_by_any_of_its_published_names(stored, dense_heads):
    path, encoder = stored
    state = published(encoder)
    for name in [name for name in state if name.startswith("dense_head.")]:
        other = name.replace("dense_head.0.", "dpt_feature_head.").replace(
            "dense_head.1.", "dpt_regressor_head."
        )
        other = re.sub(r"input_process\.([01])\.1\.", r"scratch.layer_rn.\1.", other)
        other = re.sub(r"input_process\.3\.1\.", "scratch.layer4_rn.", other)
        state[other] = state.pop(name)
    save_file(state, path / FILE)
    again = build(weights=str(path), dense_heads=dense_heads)
    assert same(encoder, again)
    assert hasattr(again, "dense_head") == dense_heads
    if dense_heads:
        for name, tensor in encoder.dense_head.state_dict().items():
            assert torch.equal(tensor, again.dense_head.state_dict()[name])


def test_weights_of_another_size_are_named(stored):
    path, _ = stored
    with pytest.raises(ConfigError, match="its widths are those of size 'tiny'"):
        build(size="tiny_v1", weights=str(path))
    (path / FILE).write_bytes(b"not safetensors")
    with pytest.raises(ConfigError, match=r"geometry\.weights: cannot read"):
        build(weights=str(path))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e(pictures(views=1)), r"images: shape \[2, 1, 3, 28, 42\] must be \[B, 2, 3, 28, 42\]"),
        (lambda e: e(pictures(), pinhole(9.0, views=1)), r"cameras\.intrinsics: shape \[2, 1, 3, 3\]"),
        (lambda e: e(pictures(), Cameras(intrinsics=torch.eye(3))), r"cameras\.intrinsics: shape \[3, 3\]"),
        (lambda e: e(pictures(), None, frozenset({"normals"})), r"needs: \['normals'\] .* depth and points"),
        (lambda e: build((28, 40)), "image_size: 28 x 40 is not a multiple of patch_size 14"),
    ],
)
def test_bad_input_names_the_field(call, message):
    with pytest.raises(UserError, match=message):
        call(build())


def framework(fusion, **geometry):
    return FrameworkConfig(
        horizon=SPEC.action.horizon,
        vlm={"name": "fake"},
        head={"name": "fake"},
        geometry={"name": "mapanything", "size": "tiny", **geometry},
        fusion={"name": fusion},
        transforms=[{"name": "resize", "height": 28, "width": 28}],
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_a_policys_checkpoint_holds_the_encoder(stored, bf16):
    path, encoder = stored
    with register_fakes():
        policy = build_policy(
            framework("aligned_concat", weights=str(path), bf16=bf16), {SPEC.embodiment: SPEC}
        )
        saved = policy.save(path / "steps_1", step=1)
        (path / FILE).unlink()
        again = VLAPolicy.from_pretrained(saved)
    assert again.model.geometry.encoder.cls_token.dtype == (torch.bfloat16 if bf16 else torch.float32)
    images = torch.randint(0, 256, (1, again.model.geometry.n_views, 3, 28, 28), dtype=torch.uint8)
    assert torch.equal(policy.model.geometry(images).tokens, again.model.geometry(images).tokens)
    assert torch.equal(again.model.geometry.scale_token, encoder.scale_token)


def test_a_fusion_that_needs_more_is_refused_when_the_policy_is_built():
    class Greedy(torch.nn.Module):
        Config = FakeHead.Config
        needs = frozenset({"normals", "depth"})

        @classmethod
        def build(cls, config, dims):
            return cls()

    undo = override("vla.fusions", "greedy", Greedy)
    for dense_heads, missing in ((True, "normals"), (False, "depth and normals")):
        with register_fakes(), pytest.raises(ConfigError) as error:
            build_policy(framework("greedy", dense_heads=dense_heads), {SPEC.embodiment: SPEC})
        assert f"'greedy' needs {missing}, which framework.geometry 'mapanything' does not" in str(
            error.value
        )
        assert "\n" not in str(error.value)
    undo()


def test_random_features_are_worth_a_warning_only_where_there_are_some(caplog):
    MapAnythingEncoder.build(MapAnythingConfig(size="tiny"), 1, (14, 14))
    assert "random features" in caplog.text
    caplog.clear()
    with torch.device("meta"):
        MapAnythingEncoder.build(MapAnythingConfig(size="tiny"), 1, (14, 14))
    assert not caplog.text
