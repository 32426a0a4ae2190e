"""``compat: starvla``: what it changes, and that it changes nothing unless asked for."""

from __future__ import annotations

import math

import pytest
import torch
from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims, HeadInputs, VLMOutput
from vla_heads import GR00TFlow, LayerwiseFM, flow
from vla_heads.compat import flow as starvla

DIMS = HeadDims(hidden_size=16, n_layers=4, action_dim=2, horizon=3, state_dim=2)


def _inputs(dtype=torch.float32, rows=2):
    g = torch.Generator().manual_seed(0)
    hidden = {i: torch.randn(rows, 5, 16, generator=g).to(dtype) for i in range(5)}
    mask = torch.ones(rows, 5, dtype=torch.bool)
    return HeadInputs(VLMOutput(hidden, mask, {}), state=torch.randn(rows, 2, generator=g))


def _layerwise(**options):
    torch.manual_seed(0)
    config = LayerwiseFM.Config(n_heads=2, n_future_tokens=2, compat="starvla", **options)
    head = LayerwiseFM.build(config, DIMS).eval()
    with torch.no_grad():
        for parameter in head.parameters():  # nothing starts at zero here
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return head


def _touched(head, changed):
    """Steps whose velocity moves when the noisy action of step ``changed`` does."""
    prepared, x = head.prepare(_inputs()), torch.zeros(2, 3, 2)
    moved = x.clone()
    moved[:, changed] += 1.0
    t = torch.full((2,), 0.25)
    with torch.no_grad():
        difference = (head.step(prepared, x, t) - head.step(prepared, moved, t)).abs().amax(dim=(0, 2))
    return (difference > 1e-6).tolist()


def test_without_interleaving_action_steps_never_see_each_other():
    assert _touched(_layerwise(interleave_self_attention=False), 1) == [False, True, False]
    assert _touched(_layerwise(), 1) == [True, True, True]


@pytest.mark.parametrize("interleaved", [True, False])
def test_layers_read_and_parameters(interleaved):
    head = _layerwise(interleave_self_attention=interleaved)
    assert head.request("train").layers == ((1, 3) if interleaved else (1, 2, 3, 4))
    names = set(head.state_dict())
    assert not any("final" in name or "ff_norm" in name for name in names)
    assert ("blocks.1.qkv.weight" in names) is interleaved
    projected = _layerwise(
        interleave_self_attention=interleaved, project_context="per_layer", width=8
    ).state_dict()
    assert projected["blocks.0.context_in.1.weight"].shape == (8, 16)
    assert ("blocks.1.context_in.1.weight" in projected) is not interleaved


def test_time_features_are_cosines_first_and_reach_the_longest_period():
    features = starvla.time_features(torch.tensor([0, 250, 1000]), 256)
    assert features[0].tolist() == [1.0] * 128 + [0.0] * 128
    for k in (0, 64, 127):
        angle = 250 * 10_000 ** (-k / 127)
        assert features[1, k].item() == pytest.approx(math.cos(angle), abs=1e-4)
        assert features[1, 128 + k].item() == pytest.approx(math.sin(angle), abs=1e-4)


def test_the_path_is_the_flow_in_fp32_and_loses_buckets_in_bf16():
    g = torch.Generator().manual_seed(0)
    actions, noise = torch.randn(2, 1, 3, 2, generator=g), torch.randn(2, 4, 3, 2, generator=g)
    time = torch.rand(2, 4, generator=g)
    x, target, buckets = starvla.path(actions, noise, time, torch.float32, 1000)
    expected_x, expected_target = flow.interpolate(actions, noise, time)
    assert torch.equal(x, expected_x)
    assert torch.equal(target, expected_target)
    assert torch.equal(buckets, flow.bucket(time, 1000))
    grid = (torch.arange(1000) + 0.5)[None] / 1000
    zeros = torch.zeros(1, 1000, 1, 1)
    _, _, kept = starvla.path(zeros[:, :1], zeros, grid, torch.bfloat16, 1000)
    # Half of 1000 buckets merge with a neighbour, and the last one is 1000 itself.
    assert kept.unique().numel() < 500
    assert kept.max() == 1000
    rounded, _, _ = starvla.path(actions, noise, time, torch.bfloat16, 1000)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())


@pytest.mark.parametrize("kind", [GR00TFlow, LayerwiseFM])
def test_training_rounds_to_the_dtype_of_the_backbone_only_when_asked(kind):
    sizes = {"size": "custom", "width": 16, "n_blocks": 2} if kind is GR00TFlow else {}
    options = {"n_heads": 2, "n_future_tokens": 2, **sizes}
    g = torch.Generator().manual_seed(1)
    actions, mask = torch.randn(2, 3, 2, generator=g), torch.ones(2, 3, 2, dtype=torch.bool)
    noise, time = torch.randn(2, 2, 3, 2, generator=g), torch.rand(2, 2, generator=g)

    def loss(compat, dtype, round_first):
        torch.manual_seed(0)
        head = kind.build(kind.Config(compat=compat, **options), DIMS)
        given = [v.to(dtype).float() if round_first else v for v in (actions, noise, time)]
        return head(_inputs(dtype), given[0], mask, given[1], given[2])["action_loss"].item()

    for compat in ("none", "starvla"):
        assert math.isfinite(loss(compat, torch.float32, False))
    # Velocity is 0 at the start, so the loss is that of the targets alone: rounded ones, or not.
    exact, rounded = (loss("none", torch.bfloat16, first) for first in (False, True))
    assert loss("none", torch.float32, False) == pytest.approx(exact, rel=1e-6)
    assert loss("starvla", torch.bfloat16, False) == loss("starvla", torch.bfloat16, True)
    assert loss("starvla", torch.bfloat16, False) != pytest.approx(exact, rel=1e-6)
    assert rounded != pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compat": "star"}, "compat: 'star' must be 'none', 'starvla' or 'starvla_llava3d'"),
        ({"interleave_self_attention": False}, "interleave_self_attention: false needs compat: starvla"),
        ({"compat": "starvla", "use_concat_cross_context": True}, "use_concat_cross_context: StarVLA has"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        LayerwiseFM.build(LayerwiseFM.Config(n_heads=2, **options), DIMS)
