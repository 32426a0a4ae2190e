"""Which trained parameters of a preset have no gradient is told by its backbone, before any data is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vla_train.presets import list_presets
from vla_train.testing.sizes import framework_tree
from vla_train.testing.trace import build, training_batch

VARIANTS: dict[str, tuple[str, list[str]]] = {
    **{name: (name, []) for name in list_presets()},
    "first": ("QwenPI", ["head.vl_layer_selection=first", "head.n_blocks=1"]),
    "first, deepstack": (
        "QwenPI",
        ["vlm.name=qwen3_vl", "head.vl_layer_selection=first", "head.n_blocks=1"],
    ),
}
SOME = {"PI0", "PI05", "first", "first, deepstack"}


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_what_has_no_gradient_was_told(name: str) -> None:
    preset, overrides = VARIANTS[name]
    torch.manual_seed(0)
    policy: Any = build(framework_tree(preset, "tiny", overrides), "tiny")
    request = policy.model.head.request("train")
    for part in (policy.model.fusion, policy.model.auxiliary):
        request = request if part is None else request | part.request
    told = tuple(f"vlm.{module}." for module in policy.model.vlm.unused(request))
    terms = policy.model(training_batch(policy, 2))
    torch.stack(list(terms.values())).sum().backward()
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    without = {name for name, p in trained.items() if p.grad is None}
    assert without == {name for name in trained if name.startswith(told)}
    assert bool(without) is (name in SOME)
