"""``compat: starvla`` of the adapter head; its numbers are compared with StarVLA's in vla-train's tests."""

from __future__ import annotations

import math

import pytest
import torch
from vla_core.errors import ConfigError
from vla_core.interfaces import HeadDims
from vla_heads import AdapterHead
from vla_heads.compat.adapter_block import rotate


@pytest.fixture
def make(dims, wake):
    def build(**options):
        config = AdapterHead.Config(
            compat="starvla", n_queries=3, n_heads=2, width=dims.hidden_size, **{"n_blocks": 6, **options}
        )
        return wake(AdapterHead.build(config, dims)).eval()

    return build


@pytest.mark.parametrize("pro", [True, False])
def test_padding_and_neighbours_change_nothing(make, make_inputs, pro):
    head, inputs = make(use_pro_version=pro), make_inputs(n_queries=3)
    with torch.no_grad():
        whole = head.predict(inputs)
        for hidden in inputs.vlm.hidden.values():
            hidden[~inputs.vlm.mask] = 1e3  # what padding holds
            hidden[1:, 2:8] += 5.0  # text between the images and the queries
        again = head.predict(inputs)
    assert torch.equal(whole, again)
    with torch.no_grad():
        inputs.vlm.hidden[1][:, 0] += 1.0
        assert not torch.allclose(head.predict(inputs), again)


def test_it_reads_layers_from_the_first_and_the_state(make, make_inputs, dims):
    head, inputs = make(), make_inputs(n_queries=3)
    assert head.request("sample").layers == tuple(range(1, dims.n_layers + 1))
    assert make(n_blocks=2).request("train").layers == (1, 2)
    with torch.no_grad():
        before = head.predict(inputs)
        inputs.state = inputs.state + 1
        assert not torch.allclose(head.predict(inputs), before)


def test_rotary_pairs_turn_by_unlike_angles():
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    turned = rotate(x, torch.tensor([[2]])).flatten().tolist()
    slow = 2 * 10_000**-0.5
    assert turned == pytest.approx([math.cos(2), math.sin(slow), -math.sin(2), math.cos(slow)], abs=1e-6)


def test_mistakes_are_named(dims):
    with pytest.raises(ConfigError, match="its width is the backbone's, 32"):
        AdapterHead.build(AdapterHead.Config(compat="starvla", width=64), dims)
    with_context = HeadDims(32, 4, 5, 6, 7, context_dim=8)
    with pytest.raises(ConfigError, match="has no head context"):
        AdapterHead.build(AdapterHead.Config(compat="starvla", width=32, n_heads=2), with_context)
    with pytest.raises(ConfigError, match="compat: 'star'"):
        AdapterHead.build(AdapterHead.Config(compat="star"), dims)
