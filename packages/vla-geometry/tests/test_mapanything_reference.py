"""Features equal those of the reference implementation with the same random weights, and those of a fork.

Everywhere: as recorded in mapanything_golden/ (its README says how). Directly where the packages
``mapanything``, ``uniception`` and ``dinov2`` are importable; there, running this file as a program writes
the record afresh.
"""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vla_core.batch import Cameras
from vla_core.errors import ConfigError
from vla_core.interfaces import FusionDims, GeometryFeatures, VisualTokens
from vla_geometry import MeanPool
from vla_geometry.mapanything import MapAnythingConfig, MapAnythingEncoder
from vla_geometry.mapanything.loading import DENSE, NOT_BUILT, canonical, published_name
from vla_geometry.mapanything.sizes import SIZES

GOLDEN = Path(__file__).parent / "mapanything_golden"
VIEWS = (1, 2, 4)
SHAPES = ((224, 224), (70, 112))


def random_tensor(name, shape, seed):
    """By name, so that the reference and the encoder get the same; legacy numpy streams never change."""
    draw = np.random.RandomState(zlib.crc32(name.encode()) ^ seed).standard_normal(shape)
    if name.endswith((".gamma", "norm.weight", "norm1.weight", "norm2.weight", "layer.weight")):
        draw = 1 + 0.2 * draw
    elif len(shape) > 1 and name.endswith(".weight"):
        draw = draw * np.prod(shape[1:]) ** -0.5
    elif name.endswith(".bias"):
        draw = 0.2 * draw
    return torch.tensor(draw, dtype=torch.float32)


def fill(state, seed=7):
    """Every parameter of a state dict in published names; the view table is computed, not learnt."""
    for name, tensor in state.items():
        if not name.endswith("view_pos_table"):
            tensor.copy_(random_tensor(canonical(name), tuple(tensor.shape), seed))


def pictures(views, image, seed=3):
    draw = np.random.RandomState(seed).randint(0, 256, (2, views, 3, *image))
    return torch.tensor(draw, dtype=torch.uint8)


def intrinsics(views, image):
    """Another focal length for each row and view; in pixels, the first one's centre at (0.5, 0.5)."""
    matrix = torch.eye(3).repeat(2, views, 1, 1)
    focal = 0.8 * image[1] * (1 + 0.1 * torch.arange(2 * views).view(2, views))
    matrix[..., 0, 0], matrix[..., 1, 1] = focal, 1.1 * focal
    matrix[..., 0, 2], matrix[..., 1, 2] = 0.45 * image[1], 0.55 * image[0]
    return matrix


def reference_heads(a):
    """Head options of both published model configs, at other widths."""
    inf = float("inf")
    ray = {
        "mode": "linear",
        "normalize_to_unit_sphere": True,
        "normalize_to_unit_image_plane": False,
    }
    ray |= {"vmin": -inf, "vmax": inf, "clamp_min_of_z_dir": False, "z_dir_min": -inf}
    return {
        "type": "dpt+pose",
        "feature_head": {
            "feature_dim": a.head_dim,
            "hooks": [0, 1, 2, 3],
            "layer_dims": list(a.head_dims),
        },
        "regressor_head": {"output_dim": 6},
        "pose_head": {"num_resconv_block": 2, "rot_representation_dim": 4},
        "scale_head": {"output_dim": 1},
        "adaptor_type": "raydirs+depth+pose+confidence+mask",
        "dpt_adaptor": {
            "name": "dense",
            **{f"ray_directions_{key}": value for key, value in ray.items()},
            **{"depth_mode": "exp", "depth_vmin": 0, "depth_vmax": inf},
            **{"confidence_type": "exp", "confidence_vmin": 1, "confidence_vmax": inf},
        },
        "pose_adaptor": {
            "name": "pose",
            **{
                "cam_trans_mode": "linear",
                "cam_trans_vmin": -inf,
                "cam_trans_vmax": inf,
            },
            **{"quaternions_mode": "linear", "quaternions_normalize": True},
            **{"quaternions_vmin": -inf, "quaternions_vmax": inf},
        },
        "scale_adaptor": {"name": "scale", "mode": "exp", "vmin": 1e-8, "vmax": inf},
    }


def reference_model(size):
    """The reference's classes at the widths of ``size``."""
    from dinov2.models.vision_transformer import DinoVisionTransformer
    from mapanything.models.mapanything import model as module

    a = SIZES[size]

    def hub_load(*_args, **_kwargs):
        # The arguments of DINOv2's own hub entry points; one block more than is kept.
        return DinoVisionTransformer(
            img_size=a.grid * 14,
            patch_size=14,
            embed_dim=a.encoder_dim,
            depth=a.encoder_depth + 1,
            num_heads=a.encoder_heads,
            init_values=1.0,
            ffn_layer="swiglufused" if a.swiglu else "mlp",
            block_chunks=0,
        )

    def factory(encoder_str, **kwargs):
        encoder = make(encoder_str, **kwargs)
        if encoder_str == "dinov2":
            encoder.enc_embed_dim = a.encoder_dim  # the reference knows the published widths only
        return encoder

    def rep(name, channels, kind):
        widths = {"intermediate_dims": list(a.ray_dims)} if kind == "dense_rep_encoder" else {}
        extra = {"apply_pe": False} if kind == "dense_rep_encoder" else {}
        return {
            "name": name,
            "in_chans": channels,
            "encoder_str": kind,
            **extra,
            **widths,
        }

    stage = {
        "name": "info_sharing",
        "indices": list(a.taps),
        "norm_intermediate": True,
        "depth": a.depth,
        "dim": a.dim,
        "num_heads": a.heads,
        "distinguish_ref_and_non_ref_views": True,
    }
    if a.layer_scale is not None:
        stage |= {
            "mlp_ratio": 4,
            "qkv_bias": True,
            "qk_norm": False,
            "init_values": 1e-5,
        }
    make, hub = module.encoder_factory, torch.hub.load
    module.encoder_factory, torch.hub.load = factory, hub_load
    try:
        return module.MapAnything(
            name="reference",
            encoder_config={
                "encoder_str": "dinov2",
                "name": "dinov2",
                "data_norm_type": "dinov2",
                "size": "giant",
                "with_registers": False,
                "uses_torch_hub": True,
                "norm_returned_features": a.encoder_norm,
                "keep_first_n_layers": a.encoder_depth,
            },
            info_sharing_config={
                "model_type": "alternating_attention",
                "model_return_type": "intermediate_features",
                "custom_positional_encoding": None,
                "module_args": stage,
            },
            pred_head_config=reference_heads(a),
            geometric_input_config={
                "ray_dirs_encoder_config": rep("rays", 3, "dense_rep_encoder"),
                "depth_encoder_config": rep("depth", 1, "dense_rep_encoder"),
                "cam_rot_encoder_config": rep("rotation", 4, "global_rep_encoder"),
                "cam_trans_encoder_config": rep("translation", 3, "global_rep_encoder"),
                "scale_encoder_config": rep("scale", 1, "global_rep_encoder"),
                "sparsification_removal_percent": 0,
            },
            use_register_tokens_from_encoder=a.class_token,
            info_sharing_mlp_layer_str="swiglufused" if a.swiglu else "mlp",
        ).eval()
    finally:
        module.encoder_factory, torch.hub.load = make, hub


@torch.no_grad()
def reference_features(model, images, matrices):
    """Tokens, registers, depth and points, of the shapes of the encoder's."""
    from mapanything.utils.inference import preprocess_input_views_for_inference
    from uniception.models.encoders.image_normalizations import IMAGE_NORMALIZATION_DICT

    norm = IMAGE_NORMALIZATION_DICT["dinov2"]
    views = []
    for i in range(images.shape[1]):
        pixels = (images[:, i].float() / 255 - norm.mean.view(3, 1, 1)) / norm.std.view(3, 1, 1)
        views.append({"img": pixels, "data_norm_type": ["dinov2"]})
        if matrices is not None:
            shifted = matrices[:, i].clone()
            shifted[:, :2, 2] -= 0.5  # there, the centre of the first pixel is at (0, 0)
            views[-1]["intrinsics"] = shifted
    views = preprocess_input_views_for_inference(views)
    model._configure_geometric_input_config(True, False, False, False, False)
    seen = []
    hook = model.info_sharing.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    seen_by_views = model(views)
    depth = torch.stack([view["pts3d_cam"][..., 2] for view in seen_by_views], dim=1)
    points = torch.stack([view["pts3d"] for view in seen_by_views], dim=1)
    hook.remove()
    tokens = torch.stack(seen[0].features, dim=1).permute(0, 1, 3, 4, 2)
    registers = [
        seen[0].additional_token_features,
        *(seen[0].additional_token_features_per_view or []),
    ]
    return tokens, torch.cat(registers, dim=2).transpose(1, 2), depth, points


@pytest.fixture(scope="module", params=["tiny", "tiny_v1"])
def pair(request, tmp_path_factory):
    """The reference with random weights, and the file of those."""
    for name in ("mapanything.models.mapanything.model", "uniception", "dinov2.models"):
        pytest.importorskip(name)
    model = reference_model(request.param)
    fill(model.state_dict())
    path = tmp_path_factory.mktemp("reference") / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
    return request.param, model, path


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("image", SHAPES)
@pytest.mark.parametrize("views", VIEWS)
def test_features_equal_the_reference(pair, views, image, calibrated):
    size, model, path = pair
    encoder = MapAnythingEncoder.build(MapAnythingConfig(size=size, weights=str(path)), views, image)
    images = pictures(views, image)
    matrices = intrinsics(views, image) if calibrated else None
    wanted = reference_features(model, images, matrices)
    features = encoder(images, Cameras(intrinsics=matrices), frozenset({"depth", "points"}))
    for name, theirs in zip(("tokens", "registers", "depth", "points"), wanted, strict=True):
        ours = getattr(features, name)
        assert ours.shape == theirs.shape
        relative = (ours - theirs).norm() / theirs.norm()
        assert relative < 1e-5, float(relative)
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def case_name(size, views, image, calibrated):
    return f"{size}/{views}/{image[0]}x{image[1]}/{'calibrated' if calibrated else 'images'}"


def summary(tokens, registers, depth, points):
    """What is recorded: some tokens and pixels and all registers of the first row, moments of all tokens."""
    return {
        "tokens": tokens[0, :, ::5, ::5].contiguous(),
        "registers": registers[0].contiguous(),
        "mean": tokens.mean(dim=(2, 3)),
        "square": tokens.square().mean(dim=(2, 3)),
        "depth": depth[0, :, ::9, ::9].contiguous(),
        "points": points[0, :, ::18, ::18].contiguous(),
    }


@pytest.fixture(scope="module", params=["tiny", "tiny_v1"])
def filled(request):
    """The encoder with the weights of the record, for any number of views and image size."""

    def build(views, image):
        encoder = MapAnythingEncoder(MapAnythingConfig(size=request.param), views, image)
        encoder.load_state_dict(state)
        return encoder

    state = MapAnythingEncoder(MapAnythingConfig(size=request.param), 1, (14, 14)).state_dict()
    fill({published_name(name): tensor for name, tensor in state.items()})
    return request.param, build


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("image", SHAPES)
@pytest.mark.parametrize("views", VIEWS)
def test_features_equal_the_record(filled, views, image, calibrated):
    size, build = filled
    cameras = Cameras(intrinsics=intrinsics(views, image)) if calibrated else None
    features = build(views, image)(pictures(views, image), cameras, frozenset({"depth", "points"}))
    record = load_file(GOLDEN / "features.safetensors")
    for part, ours in summary(features.tokens, features.registers, features.depth, features.points).items():
        theirs = record[f"{case_name(size, views, image, calibrated)}/{part}"]
        assert (ours - theirs).norm() < 1e-4 * theirs.norm(), part
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max(), part


@pytest.mark.parametrize("size", ["giant", "large"])
def test_keys_and_shapes_are_the_published_ones(size):
    with torch.device("meta"):
        state = MapAnythingEncoder(MapAnythingConfig(size=size), 2, (224, 224)).state_dict()
    ours = {f"{published_name(name)} {list(tensor.shape)}" for name, tensor in state.items()}
    theirs = {canonical(line) for line in (GOLDEN / f"keys_{size}.txt").read_text().splitlines()}
    assert ours == {line for line in theirs if not line.startswith(NOT_BUILT)}
    assert all(any(line.startswith(prefix) for line in theirs) for prefix in NOT_BUILT + DENSE)


FORK = ((1, (224, 224)), (2, (224, 224)), (4, (70, 112)))


def fork_encoder(size, views, image, **options):
    """``compat: starvla_llava3d`` with the weights of the record."""
    config = MapAnythingConfig(size=size, compat="starvla_llava3d", dense_heads=False, **options)
    encoder = MapAnythingEncoder.build(config, views, image, weights="weights" in options)
    if "weights" not in options:
        fill({published_name(name): tensor for name, tensor in encoder.state_dict().items()})
    return encoder


@pytest.mark.parametrize(("views", "image"), FORK)
@pytest.mark.parametrize("size", ["tiny", "tiny_v1"])
def test_compat_gives_the_features_of_the_starvla_fork(size, views, image):
    record = load_file(GOLDEN / "starvla_llava3d.safetensors")
    encoder, images = fork_encoder(size, views, image), pictures(views, image)
    features = encoder(images, Cameras(intrinsics=intrinsics(views, image)))
    assert features.registers is None
    tokens = features.tokens
    got = {
        "tokens": tokens[0, :, ::5, ::5],
        "mean": tokens.mean(dim=(2, 3)),
        "square": tokens.square().mean(dim=(2, 3)),
        "fused": fork_fused(tokens)[:, ::9],
    }
    for part, ours in got.items():
        theirs = record[f"{size}/{views}/{image[0]}x{image[1]}/{part}"]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max(), part
    assert torch.equal(encoder(images.float() / 255).tokens, tokens)


@torch.no_grad()
def fork_fused(tokens, hidden=8):
    """``mean_pool`` over ``tokens`` with the weights and vision tokens of the record."""
    b, v, h, w, c = tokens.shape
    fusion = MeanPool.build(MeanPool.Config(), FusionDims(hidden, c, 1))
    for ours, theirs in ((fusion.project, "geometric_projector"), (fusion.out, "fusion_projector")):
        for name, parameter in ours.named_parameters():
            parameter.copy_(random_tensor(f"{theirs}.{name}", tuple(parameter.shape), 3))
    vision = random_tensor("vision", (b * v, h * w, hidden), 3).view(b, -1, hidden)
    seen = torch.ones(vision.shape[:2], dtype=torch.bool)
    return fusion(VisualTokens(vision, seen, (v, h, w)), GeometryFeatures(tokens)).visual.tokens


def test_compat_loads_a_whole_published_file(tmp_path):
    full = MapAnythingEncoder(MapAnythingConfig(size="tiny"), 1, (28, 28)).state_dict()
    published = {published_name(name): tensor for name, tensor in full.items()}
    save_file({**published, "depth_encoder.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    state = fork_encoder("tiny", 1, (28, 28), weights=str(tmp_path)).state_dict()
    gone = {name.split(".")[0] for name in full.keys() - state.keys()}
    assert gone == {"ray_dirs_encoder", "fusion_norm_layer", "scale_token", *(p.rstrip(".") for p in DENSE)}
    assert all(torch.equal(tensor, full[name]) for name, tensor in state.items())


def test_compat_keeps_missing_views_out():
    encoder, images = fork_encoder("tiny", 2, (28, 28)), pictures(2, (28, 28))
    cameras = Cameras(view_mask=torch.tensor([[True, False], [False, False]]))
    before = encoder(images, cameras).tokens
    images[:, 1] = 255 - images[:, 1]
    after = encoder(images, cameras).tokens
    assert torch.allclose(before[0, 0], after[0, 0], atol=1e-6)
    assert after.isfinite().all()


def test_compat_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"set geometry.dense_heads to false"):
        MapAnythingConfig(compat="starvla_llava3d")
    with pytest.raises(ConfigError, match=r"geometry.compat: 'starvla' must be 'none' or 'starvla_llava3d'"):
        MapAnythingConfig(compat="starvla")


def write():
    """Record the reference's features for every case."""
    tensors = {}
    for size in ("tiny", "tiny_v1"):
        model = reference_model(size)
        fill(model.state_dict())
        for views, image, calibrated in ((v, i, c) for v in VIEWS for i in SHAPES for c in (False, True)):
            matrices = intrinsics(views, image) if calibrated else None
            parts = summary(*reference_features(model, pictures(views, image), matrices))
            name = case_name(size, views, image, calibrated)
            tensors |= {f"{name}/{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, GOLDEN / "features.safetensors")


if __name__ == "__main__":
    write()
