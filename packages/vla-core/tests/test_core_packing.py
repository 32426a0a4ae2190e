"""Layouts for inference."""

import torch
from vla_core.packing import merged


def test_one_layer_of_several_is_in_their_mode() -> None:
    first, second = torch.nn.Linear(4, 3).eval(), torch.nn.Linear(4, 5).eval()
    # A new module would train: kernels of inference are not for it.
    assert not merged(first, second).training
    assert merged(first.train(), second.train()).training
