"""What is special about the two concatenating fusions; what they share with all: test_all_fusions.py."""

import dataclasses

import pytest
import torch
from vla_geometry import AlignedConcat, MeanPool
from vla_geometry.fusions._resample import resample


def build(cls, dims):
    """As after some training: the geometry half no longer zero."""
    fusion = cls.build(cls.Config(), dims)
    with torch.no_grad():
        fusion.out.weight.add_(0.1 * torch.randn_like(fusion.out.weight))
    return fusion


def fuse(fusion, inputs):
    return inputs.run(fusion).visual.tokens


def test_aligned_concat_touches_only_its_own_place(dims, inputs):
    fusion = build(AlignedConcat, dims)
    base = fuse(fusion, inputs)
    inputs.geometry.tokens[0, 1, 0, 2] += 1.0  # view 1, row 0, column 2 -> token 6 + 2
    assert (base != fuse(fusion, inputs)).any(dim=-1).nonzero().tolist() == [[0, 8]]


def test_resampling_keeps_places():
    ramp = torch.arange(8.0).view(1, 1, 1, 8, 1).expand(1, 2, 4, 8, 1)
    down = resample(ramp, 2, 4)
    assert torch.allclose(down[0, 0, 0, :, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]), atol=0.3)
    assert (down.diff(dim=3) > 0).all()
    up = resample(ramp, 4, 16)
    assert torch.allclose(up[0, 1, 0, 1:-1, 0], torch.arange(1, 15) / 2 - 0.25, atol=1e-5)
    assert resample(ramp, 4, 8) is ramp


def test_mean_pool_ignores_any_order(dims, inputs):
    """Its defect: even tokens of different views may change places."""
    fusion = build(MeanPool, dims)
    base, tokens = fuse(fusion, inputs), inputs.geometry.tokens
    inputs.geometry.tokens = tokens.flatten(1, 3)[:, torch.randperm(12)].view_as(tokens)
    assert torch.allclose(base, fuse(fusion, inputs), atol=1e-5)


@pytest.mark.parametrize("row", [0, 2])
def test_a_row_with_one_view_left_has_that_view_s_mean(dims, inputs, row):
    fusion = build(MeanPool, dims)
    inputs.hide_view(row, 0)
    left = fuse(fusion, inputs)[row]
    alone = inputs.geometry.tokens[:, 1:].expand(-1, 2, -1, -1, -1)
    inputs.geometry = dataclasses.replace(inputs.geometry, tokens=alone)
    inputs.visual = dataclasses.replace(inputs.visual, mask=torch.ones_like(inputs.visual.mask))
    assert torch.allclose(left, fuse(fusion, inputs)[row], atol=1e-5)
