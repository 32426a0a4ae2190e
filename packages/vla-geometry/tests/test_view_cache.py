"""Per-view features under keys: what a key saves, what it never hides, and how much is kept."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from vla_core.assemble import build_policy
from vla_core.batch import Cameras
from vla_core.errors import ConfigError, UserError
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.testing import make_observation, make_spec, register_fakes
from vla_geometry import MapAnythingConfig, MapAnythingEncoder, TinyGeometryConfig, TinyGeometryEncoder
from vla_geometry.cache import ViewCache

SIZE = (28, 42)
CONFIGS = {
    "tiny": TinyGeometryConfig(
        encoder_dim=16, encoder_depth=1, dim=24, sharing_depth=2, head_dim=8, cache_mib=1
    ),
    "mapanything": MapAnythingConfig(size="tiny", cache_mib=1),
    "mapanything_v1": MapAnythingConfig(size="tiny_v1", cache_mib=1),
}
NEEDS = frozenset({"depth"})


@pytest.fixture(params=CONFIGS)
def encoder(request):
    """An encoder with a cache that tells how many images its per-view stage has seen."""
    config = CONFIGS[request.param]
    cls = TinyGeometryEncoder if request.param == "tiny" else MapAnythingEncoder
    made = cls.build(config, 2, SIZE)
    made.seen, see = [], made._see
    made._see = lambda images: made.seen.append(len(images)) or see(images)
    return made


def pictures(rows=2):
    return torch.randint(0, 256, (rows, 2, 3, *SIZE), dtype=torch.uint8)


def cameras(*keys, focal=30.0):
    matrix = torch.tensor([[focal, 0.0, 21.0], [0.0, focal, 14.0], [0.0, 0.0, 1.0]])
    return Cameras(matrix.expand(len(keys), 2, 3, 3), view_keys=keys)


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "registers", "depth"))


def test_the_second_time_nothing_is_encoded_and_every_bit_is_the_same(encoder):
    images, keyed = pictures(), cameras(("a", "b"), ("c", "d"))
    plain = encoder(images, cameras((None, None), (None, None)), NEEDS)
    first, second = encoder(images, keyed, NEEDS), encoder(images, keyed, NEEDS)
    assert encoder.seen == [4, 4]
    assert same(first, plain)
    assert same(second, plain)
    assert (encoder.cache.hits, encoder.cache.misses) == (4, 4)


def test_only_pictures_without_a_known_key_are_encoded(encoder):
    images = pictures()
    plain = encoder(images, cameras((None, None), (None, None)), NEEDS)
    encoder(images[:1], cameras(("front", None)), NEEDS)
    mixed = encoder(images, cameras(("front", None), (None, "side")), NEEDS)
    assert encoder.seen == [4, 2, 3]
    assert torch.allclose(mixed.tokens, plain.tokens, atol=1e-5)
    assert torch.allclose(mixed.depth, plain.depth, rtol=1e-4)
    assert len(encoder.cache) == 2  # pictures without a key are not kept


def test_one_key_twice_in_a_batch_is_one_picture(encoder):
    images = pictures()
    images[1, 0] = images[0, 0]
    keyed = encoder(images, cameras(("front", None), ("front", None)), NEEDS)
    assert encoder.seen == [3]
    assert torch.allclose(keyed.tokens, encoder(images, cameras((None,) * 2, (None,) * 2)).tokens, atol=1e-5)


def test_a_known_key_s_picture_is_not_looked_at_and_all_else_is(encoder):
    images, keyed = pictures(1), cameras(("front", None))
    first = encoder(images, keyed, NEEDS)
    changed = images.clone()
    changed[0, 0] = 255 - changed[0, 0]
    assert torch.allclose(encoder(changed, keyed, NEEDS).tokens, first.tokens, atol=1e-5)
    changed[0, 1] = 255 - changed[0, 1]  # the other view is computed, and the first one sees it
    assert not torch.allclose(encoder(changed, keyed, NEEDS).tokens[0, 0], first.tokens[0, 0], atol=1e-5)
    # Calibration and missing views are not part of what is kept.
    moved, none = cameras(("front", None), focal=60.0), cameras((None, None), focal=60.0)
    assert torch.allclose(encoder(images, moved).tokens, encoder(images, none).tokens, atol=1e-5)
    moved.view_mask = none.view_mask = torch.tensor([[True, False]])
    assert torch.allclose(encoder(images, moved).tokens, encoder(images, none).tokens, atol=1e-5)


def test_other_weights_devices_and_precisions_are_never_mixed_up(encoder):
    images, keyed = pictures(1), cameras(("a", "b"))
    encoder(images, keyed)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder(images, keyed).tokens
        assert torch.equal(mixed, encoder(images, cameras((None, None))).tokens)
    assert torch.equal(encoder(images, keyed).tokens, encoder(images, cameras((None, None))).tokens)
    other = {name: tensor + 0.1 for name, tensor in encoder.state_dict().items()}
    encoder.load_state_dict(other)
    assert len(encoder.cache) == encoder.cache.bytes == 0
    assert torch.equal(encoder(images, keyed).tokens, encoder(images, cameras((None, None))).tokens)
    half = encoder.to(torch.bfloat16)(images, keyed).tokens
    assert torch.equal(half, encoder(images, cameras((None, None))).tokens)
    assert len(copy.deepcopy(encoder.cache)) == len(pickle.loads(pickle.dumps(encoder.cache))) == 0


def test_kept_under_inference_and_used_while_training(encoder):
    images, keyed = pictures(1), cameras(("a", "b"))
    with torch.inference_mode():
        encoder(images, keyed)
    tokens = encoder(images, keyed).tokens
    weight = torch.ones(tokens.shape[-1], requires_grad=True)
    (tokens * weight).sum().backward()  # an inference tensor could not be saved for this
    assert weight.grad.isfinite().all()
    assert encoder.seen == [2]


def test_the_least_recently_used_goes_first():
    def ask(*keys):
        calls = []
        images = torch.arange(len(keys)).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
        cache(images, keys, lambda x: calls.append(len(x)) or (torch.zeros(len(x), 100, 1024), x.clone()))
        return sum(calls)

    cache = ViewCache(1)  # MiB: two images of 0.4 MiB
    assert ask("a") == ask("b") == 1
    assert ask("a", "b") == 0
    assert ask("a") == 0
    assert ask("c") == 1  # b goes
    assert len(cache) == 2
    assert cache.bytes == 2 * (400 * 1024 + 3 * 8) < 2**20
    assert ask("a", "c") == 0
    assert ask("b") == 1
    assert ask("d", "e", "f", "d") == 3  # more than fits, in one call
    assert ask("e", "f") == 0
    with pytest.raises(
        UserError, match=r"geometry\.cache_mib: 1 MiB hold less than .* one image \(2\.0 MiB\)"
    ):
        cache(torch.zeros(1, 3, 1, 1), ["big"], lambda x: (torch.zeros(1, 512, 1024),))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((("a", "b"),), r"rows of \[2\] keys must be 2 rows of 2"),
        ((("a",), ("b", "c")), r"rows of \[1, 2\] keys must be 2 rows of 2"),
        ((("", "b"), (None, None)), "'' must be a text that is not empty"),
        (((1, "b"), (None, None)), "1 must be a text"),
    ],
)
def test_bad_keys_name_the_field(encoder, keys, message):
    with pytest.raises(UserError, match=rf"cameras\.view_keys: .*{message}"):
        encoder(pictures(), Cameras(view_keys=keys))


@pytest.mark.parametrize("config", [TinyGeometryConfig, MapAnythingConfig])
def test_a_cache_is_for_frozen_encoders_and_keys_for_a_cache(config):
    with pytest.raises(ConfigError, match=r"geometry\.cache_mib: 8 is for a frozen encoder"):
        config(cache_mib=8, trainable=True)
    with pytest.raises(ConfigError, match=r"geometry\.cache_mib: must be >= 0, got -1"):
        config(cache_mib=-1)
    plain = TinyGeometryEncoder.build(TinyGeometryConfig(), 2, SIZE)
    assert plain.cache is None
    with pytest.raises(UserError, match=r"cameras\.view_keys: given, but geometry\.cache_mib is 0"):
        plain(pictures(1), Cameras(view_keys=(("a", "b"),)))


def policy_with(geometry, fusion="aligned_concat"):
    spec = make_spec()
    config = FrameworkConfig(
        horizon=spec.action.horizon,
        vlm={"name": "fake"},
        head={"name": "fake"},
        geometry={"name": "mapanything", "size": "tiny", **geometry} if geometry is not None else None,
        fusion={"name": fusion} if geometry is not None else None,
        transforms=[{"name": "resize", "height": 28, "width": 28}],
    )
    with register_fakes():
        return build_policy(config, {spec.embodiment: spec}).eval(), spec


def test_a_policy_acts_with_keys_by_camera_name(tmp_path):
    policy, spec = policy_with({"cache_mib": 4})
    torch.nn.init.normal_(policy.model.fusion.out.weight)
    observations = [make_observation(spec, seed) for seed in range(2)]
    plain = policy.act(observations, [0, 1])
    keys = [{"camera_1": "still"}, {"camera_0": "x", "camera_1": "y"}]
    for _ in range(2):
        for chunk, other in zip(policy.act(observations, [0, 1], view_keys=keys), plain, strict=True):
            assert torch.allclose(torch.tensor(chunk.actions), torch.tensor(other.actions), atol=1e-5)
    assert (policy.model.geometry.cache.hits, policy.model.geometry.cache.misses) == (3, 3)
    with register_fakes():
        again = VLAPolicy.from_pretrained(policy.save(tmp_path / "steps_1", step=1))
    assert len(again.model.geometry.cache) == 0
    assert again.model.geometry.config.cache_mib == 4
    for bad, message in (
        ([{}], "view_keys: 1 rows for 2 observations"),
        ([{"camera_2": "a"}, {}], r"view_keys: no camera 'camera_2' \(did you mean 'camera_"),
    ):
        with pytest.raises(UserError, match=message):
            policy.act(observations, [0, 1], view_keys=bad)


@pytest.mark.parametrize(
    ("geometry", "fusion", "message"),
    [
        (None, "", "this policy computes no geometry"),
        ({"cache_mib": 4}, "align_loss", "this policy computes no geometry"),
        ({"cache_mib": 4}, "position_3d", "this policy computes no geometry"),
        ({}, "aligned_concat", r"the geometry encoder has no cache; set geometry\.cache_mib"),
    ],
)
def test_keys_that_could_have_no_effect_are_refused(geometry, fusion, message):
    policy, spec = policy_with(geometry, fusion)
    with pytest.raises(UserError, match=f"view_keys: given, but {message}"):
        policy.act([make_observation(spec)], [0], view_keys=[{}])
