"""Every preset, tiny, with its shard units spread over two processes: the same losses, gradients and actions.

What this shows: inside the model every parameter is read in the forward of the unit that holds it.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from vla_core.shard import ShardUnit, mark, shard_units
from vla_train.engine.groups import spread
from vla_train.presets import list_presets
from vla_train.testing.ranks import run_ranks
from vla_train.testing.sizes import framework_tree
from vla_train.testing.trace import build, noise_for, training_batch

WORLD = 2
VARIANTS: dict[str, tuple[str, list[str]]] = {
    **{name: (name, []) for name in list_presets()},
    "shared K and V": (
        "QwenPI",
        ["head.project_context=per_layer", "head.use_concat_cross_context=true"],
    ),
    "StarVLA's layers": ("QwenPI", ["head.compat=starvla", "head.project_context=per_layer"]),
    "StarVLA's GR00T": ("QwenGR00T", ["head.compat=starvla"]),
    "checkpointed prefix": ("PI0", ["vlm.gradient_checkpointing=true"]),
    "trained chunking": ("QwenPI", ["head.rtc_max_delay=2"]),
    "Florence-2": ("QwenGR00T", ["vlm.name=florence2"]),
    "Qwen3-VL speaks": ("QwenFast", ["vlm.name=qwen3_vl"]),
}


def outcome(model: Any, batch: Any, noise: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    model.zero_grad()
    model.train()
    torch.manual_seed(3)
    terms = model(batch)
    torch.stack(list(terms.values())).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.eval()
    with torch.no_grad():
        actions = model.predict(batch, noise)
    return {k: v.detach() for k, v in terms.items()}, {k: whole(v) for k, v in grads.items()}, actions


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def differences(name: str, gather_mb: int) -> list[str]:
    """What sharding changed; also how much lies outside of all units."""
    preset, overrides = VARIANTS[name]
    torch.manual_seed(0)
    policy: Any = build(framework_tree(preset, "tiny", overrides), "tiny")
    model = policy.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch, noise = training_batch(policy, 2), noise_for(policy, 2)
    expected = outcome(copy.deepcopy(model), batch, noise)
    units = shard_units(model)
    spread(model, gather_mb=gather_mb, reshard=True, prefetch=1, complete=lambda layers: None)
    register_fsdp_forward_method(model, "predict")
    found = outcome(model, batch, noise)
    lines = [f"{len(units)} units"] if len(units) < 3 else []
    for theirs, ours, what in zip(expected[:2], found[:2], ("term", "gradient"), strict=True):
        if theirs.keys() != ours.keys():
            lines.append(f"{what}s of {sorted(theirs.keys() ^ ours.keys())}")
        lines += [f"{what} {k}" for k in theirs.keys() & ours.keys() if not same(theirs[k], ours[k])]
    if not same(expected[2], found[2]):
        lines.append("actions")
    return lines


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def rank_main(directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    # Layer by layer, and with all layers of a kind as one group.
    found = {name: differences(name, 0) + differences(name, 500) for name in VARIANTS}
    torch.save(found, Path(directory) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    directory = tmp_path_factory.mktemp("ranks")
    ended = run_ranks([sys.executable, __file__, str(directory)], WORLD, timeout_s=800)
    assert all(rank.code == 0 for rank in ended), "\n".join(rank.said for rank in ended)
    results = [torch.load(directory / f"{rank}.pt") for rank in range(WORLD)]
    return {name: [line for result in results for line in result[name]] for name in VARIANTS}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_sharding_changes_nothing(found: dict[str, list[str]], name: str) -> None:
    assert found[name] == []


def test_units_of_another_class_keep_name_and_weights() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    before = {k: v.clone() for k, v in layers.state_dict().items()}
    mark(layers)
    mark(layers)
    inner = layers[1][0]
    mark([inner])
    assert type(layers[0]).__name__ == "Linear"
    assert isinstance(layers[0], (nn.Linear, ShardUnit))
    assert shard_units(layers) == [inner, layers[1], layers[0]], "inner ones first, and those with weights"
    assert all(torch.equal(before[k], v) for k, v in layers.state_dict().items())
    assert torch.equal(copy.deepcopy(layers)(torch.ones(1, 2)), layers(torch.ones(1, 2)))


if __name__ == "__main__":
    rank_main(*sys.argv[1:])
