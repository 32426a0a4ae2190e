"""Linear layers of odd sizes: the same numbers with zeros behind, packed or not."""

import pytest
import torch
from torch import nn
from vla_core.packing import pack
from vla_vlm.common.aligned import AlignedLinear, align, missing


def mlp(inner: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, inner), nn.SiLU(), nn.Linear(inner, 16, bias=False))


def test_wide_sizes_reach_a_row_that_a_compiled_product_may_write_with_its_bias() -> None:
    assert [missing(size) for size in (13, 24, 1023, 1028, 3420, 3424)] == [3, 0, 1, 60, 36, 0]


@pytest.mark.parametrize("inner", [13, 20, 1028])
@pytest.mark.parametrize("packed", [False, True])
def test_odd_sizes_give_the_same_numbers(inner: int, packed: bool) -> None:
    plain = mlp(inner).bfloat16()
    layers = mlp(inner).bfloat16()
    assert align(layers) == 2
    names = {name: value.shape for name, value in plain.state_dict().items()}
    assert {name: value.shape for name, value in layers.state_dict().items()} == names
    if packed:
        assert pack(layers) == 2
        assert layers[0].weight.shape == (inner + missing(inner), 16)
    x = torch.randn(3, 5, 16).bfloat16()
    torch.testing.assert_close(layers(x), plain(x), rtol=2e-2, atol=2e-3)


def test_gradients_are_those_of_the_plain_layers() -> None:
    plain, layers = mlp(13), mlp(13)
    align(layers)
    x = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        plain(x).square().mean().backward()
        layers(x).square().mean().backward()
    for ours, theirs in zip(layers.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=5e-2, atol=1e-3)


def test_float32_stays_as_it_was_to_the_bit_and_even_sizes_are_left_alone() -> None:
    plain, layers = mlp(13), mlp(13)
    align(layers)
    x = torch.randn(4, 16)
    assert torch.equal(layers(x), plain(x))
    assert align(mlp(24)) == 0


def test_a_packed_layer_computes_in_float32_too() -> None:
    plain, layers = mlp(13), mlp(13)
    align(layers)
    pack(layers)
    x = torch.randn(4, 16)
    torch.testing.assert_close(layers(x), plain(x))
    assert isinstance(layers[0], AlignedLinear)
