"""Every preset, at tiny size on a CPU: it learns a fixed batch, and its checkpoint acts bit-equally."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vla_core import registry
from vla_core.assemble import build_policy
from vla_core.batch import Batch
from vla_core.config import build_config
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.testing import make_observation, make_sample, make_spec
from vla_serve import PolicyClient
from vla_serve.server import PolicyServer
from vla_train._smoke_sizes import TINY
from vla_train.presets import list_presets, load_preset

ROWS, REPEATS, SIZE = 2, 4, 64
# With a geometry encoder, whose patches have 14 pixels, not 16.
SIZE_WITH_GEOMETRY = 112

# Option -> small value, for the parts that have the option.
SMALL_VLM = {
    "base_vlm": "tiny",
    "vision": "conv_vit",
    "prompt": "{prefix}{images}{instruction}{suffix}{queries}",
    "max_text_tokens": 24,
    "tiny": {
        "hidden_size": 64,
        "n_layers": 2,
        "intermediate_size": 128,
        "vision_hidden": 48,
        "vision_depth": 1,
        "vision_intermediate": 96,
        "patch_size": 16,
        "merge_size": 1,
    },
}
SMALL_GEOMETRY = {"size": "tiny", "weights": None}
SMALL_HEAD = TINY["head"]


def shrunk(group: str, node: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """``node`` with the small values of the options that its part has, below ``tiny`` too."""
    options = {field.name: field for field in dataclasses.fields(registry.load(group, node["name"]).Config)}
    out = dict(node)
    for key, value in small.items():
        if key not in options:
            continue
        factory = options[key].default_factory
        if isinstance(value, dict) and factory is not dataclasses.MISSING:
            inner = {field.name for field in dataclasses.fields(factory())}
            value = {name: size for name, size in value.items() if name in inner}
        out[key] = value
    return out


def tiny_preset(name: str) -> dict[str, Any]:
    preset = load_preset(name)
    preset["vlm"] = shrunk("vla.vlms", preset["vlm"], SMALL_VLM)
    preset["head"] = shrunk("vla.heads", preset["head"], SMALL_HEAD)
    if preset.get("geometry"):
        preset["geometry"] = shrunk("vla.geometry", preset["geometry"], SMALL_GEOMETRY)
    size = SIZE_WITH_GEOMETRY if preset.get("geometry") else SIZE
    preset["transforms"] = [
        {**step, "height": size, "width": size} if step["name"] == "resize" else step
        for step in preset["transforms"]
    ]
    return preset


def tiny(name: str) -> VLAPolicy:
    config = build_config(FrameworkConfig, tiny_preset(name), "framework")
    spec = make_spec(n_cameras=2, height=SIZE, width=SIZE, horizon=config.horizon)
    torch.manual_seed(0)
    return build_policy(config, {spec.embodiment: spec})


def fixed_batch(policy: VLAPolicy) -> Batch:
    assert policy.collator is not None
    ((name, pipeline),) = policy.pipelines.items()
    samples = [make_sample(policy.specs[name], seed) for seed in range(ROWS)]
    return policy.collator([pipeline(sample) for sample in samples])


def overfit(policy: VLAPolicy, steps: int) -> tuple[float, float]:
    """First and last loss on one fixed batch with fixed noise and time."""
    batch = fixed_batch(policy)
    generator = torch.Generator().manual_seed(0)
    assert batch.actions is not None
    noise = torch.randn(ROWS, REPEATS, *batch.actions.shape[1:], generator=generator)
    time = torch.rand(ROWS, REPEATS, generator=generator)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = torch.stack(list(policy.model(batch, noise, time).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", list_presets())
def test_preset_learns_and_its_checkpoint_acts_alike(name: str, tmp_path: Path) -> None:
    policy = tiny(name)
    assert policy.framework == name
    first, last = overfit(policy, 50)
    assert last < 0.5 * first
    policy.eval()
    ((embodiment, spec),) = policy.specs.items()
    observations = [make_observation(spec, seed) for seed in (0, 1)]
    answers = policy.act(observations, [3, 4])
    assert answers[0].actions.shape == (load_preset(name)["horizon"], spec.action.dim)
    assert not np.array_equal(answers[0].actions, answers[1].actions)
    loaded = VLAPolicy.from_pretrained(policy.save(tmp_path / "steps_50", step=50))
    assert loaded.framework == name
    for ours, theirs in zip(answers, loaded.act(observations, [3, 4]), strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions)
    assert loaded.specs[embodiment] == spec
    with PolicyServer(loaded) as server, PolicyClient(f"127.0.0.1:{server.port}") as client:
        served = client.predict(observations[1], seed=4)
    (alone,) = loaded.act(observations[1:], [4])
    np.testing.assert_array_equal(served.actions, alone.actions)


def test_each_embodiment_has_encoders_of_its_own() -> None:
    specs = {name: make_spec(1, SIZE, SIZE, 8, embodiment=name) for name in ("left", "right")}
    preset = tiny_preset("QwenGR00T")
    torch.manual_seed(0)
    policy = build_policy(build_config(FrameworkConfig, preset, "framework"), specs).eval()
    torch.nn.init.normal_(policy.model.get_parameter("head.decoder.down.weight"))
    observations = [make_observation(spec, 0) for spec in specs.values()]
    left, right = policy.act(observations, [3, 3])
    assert not np.allclose(left.actions, right.actions)
    (alone,) = policy.act(observations[1:], [3])
    np.testing.assert_allclose(right.actions, alone.actions, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "compress"),
    [("QwenPI", "per_layer"), ("QwenPI_v3", "qformer"), ("QwenGR00T", "pool"), ("QwenAdapter", "per_layer")],
)
def test_a_fusion_feeds_the_head(name: str, compress: str) -> None:
    preset = tiny_preset(name)
    preset["geometry"] = {"name": "tiny", "patch_size": 16, "dim": 64, "dense_heads": False}
    preset["fusion"] = {"name": "head_context", "compress": compress, "pool_size": 2, "n_tokens": 3}
    spec = make_spec(n_cameras=2, height=SIZE, width=SIZE, horizon=preset["horizon"])
    torch.manual_seed(0)
    policy = build_policy(build_config(FrameworkConfig, preset, "framework"), {spec.embodiment: spec})
    batch = fixed_batch(policy)
    # What starts at zero (the outputs, the gate on vision) wakes up in the first two steps.
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        torch.stack(list(policy.model(batch).values())).sum().backward()
        optimizer.step()
    assert policy.model.fusion is not None
    dead = [n for n, p in policy.model.fusion.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
