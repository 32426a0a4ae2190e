"""Adapters: what trains, what is saved, and that it resumes and loads like any run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from vla_core.assemble import build_policy
from vla_core.config import build_config
from vla_core.errors import ConfigError
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.testing import make_observation, make_sample, make_spec
from vla_train.checkpointing.resume import run_directory
from vla_train.composition import compose
from vla_train.lora import LoRAConfig, apply_lora, merged_state, target_layers
from vla_train.presets import load_run_tree
from vla_train.testing.sizes import CAMERA, framework_tree
from vla_train.trainer import Outcome, Trainer

pytest.importorskip("peft")

EVERYTHING = ("vlm", "head")


def build(name: str = "QwenPI") -> VLAPolicy:
    tree = framework_tree(name, "tiny")
    config = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
    torch.manual_seed(0)
    return build_policy(config, {"default": make_spec(1, CAMERA["tiny"], CAMERA["tiny"], config.horizon)})


def loss_of(policy: VLAPolicy) -> torch.Tensor:
    assert policy.collator is not None
    pipeline, spec = policy.pipelines["default"], policy.specs["default"]
    batch = policy.collator([pipeline(make_sample(spec, i)) for i in range(2)])
    assert batch.actions is not None
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 1, *batch.actions.shape[1:], generator=generator)
    return torch.stack(list(policy.model(batch, noise, torch.full((2, 1), 0.5)).values())).sum()


def train_a_little(policy: VLAPolicy, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(policy).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["QwenPI", "QwenOFT"])
def test_every_adapter_is_used_and_merges_to_the_same_outputs(name: str) -> None:
    policy, plain = build(name), build(name)
    layers = apply_lora(policy.model, LoRAConfig(EVERYTHING, rank=4, train_modules=()))
    assert len(layers) > 20
    assert loss_of(policy).item() == pytest.approx(loss_of(plain).item(), rel=1e-6)
    loss_of(policy).backward()
    training = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in n for n in training)
    train_a_little(policy)
    for parameter in training.values():
        parameter.grad = None
    loss_of(policy).backward()
    # An adapter whose layer's owner reads the weight, past it, would stay without gradient.
    assert [n for n, p in training.items() if p.grad is None] == []
    state = merged_state(policy.model)
    assert state.keys() == plain.model.state_dict().keys()
    plain.model.load_state_dict(state)
    policy.eval()
    plain.eval()
    observations = [make_observation(policy.specs["default"], i) for i in range(2)]
    for ours, theirs in zip(policy.act(observations, [1, 2]), plain.act(observations, [1, 2]), strict=True):
        np.testing.assert_allclose(ours.actions, theirs.actions, atol=1e-5)
    moved = (state[f"{layers[0]}.weight"] - build(name).model.state_dict()[f"{layers[0]}.weight"]).abs().max()
    assert moved > 1e-4


def test_layers_are_chosen_by_prefix_by_end_and_by_expression() -> None:
    policy = build()
    text = "vlm.model.language_model"
    under = target_layers(policy.model, [text])
    assert f"{text}.layers.0.self_attn.q_proj" in under
    assert all(n.startswith(text) for n in under)
    ends = target_layers(policy.model, ["q_proj", "v_proj"])
    assert len(ends) == 2 * len(cast(Any, policy.model.vlm).language_model.layers)
    assert target_layers(policy.model, [rf"{text}\.layers\.1\.mlp\..*"]) == [
        f"{text}.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down")
    ]
    both = target_layers(policy.model, ["head", "q_proj"])
    assert [n for n, _ in policy.model.named_modules() if n in both] == both


def test_what_trains_besides() -> None:
    def training(**options: Any) -> set[str]:
        policy = build()
        apply_lora(policy.model, LoRAConfig(rank=2, **options))
        names = {n for n, p in policy.model.named_parameters() if p.requires_grad}
        return {n.split(".")[0] for n in names if ".lora_" not in n}

    assert training(modules=("q_proj",)) == {"head"}
    assert training(modules=("vlm", "head.blocks")) == set()
    assert training(modules=("q_proj",), train_modules=("vlm.model.visual",)) == {"vlm"}
    assert training(modules=("q_proj",), train_modules=()) == set()


@pytest.mark.parametrize(
    ("modules", "train_modules", "message"),
    [
        (("vlm.model.langage_model",), None, "did you mean 'vlm.model.language_model'"),
        (("q_prj",), None, "did you mean 'q_proj'"),
        (("lm_head",), None, "no linear layer of the policy is or lies under 'lm_head'"),
        (("(",), None, r"'\(' is no regular expression"),
        (("q_proj",), ("haed",), "did you mean 'head'"),
        (
            ("head.blocks",),
            ("head",),
            "'head' trains as a whole, and trainer.lora.modules puts an adapter on",
        ),
    ],
)
def test_unknown_names(modules: tuple[str, ...], train_modules: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_lora(build().model, LoRAConfig(modules, train_modules=train_modules))


def test_frozen_parts_and_a_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = build()
    policy.model.get_submodule("vlm").requires_grad_(False)
    with pytest.raises(ConfigError, match="is frozen by the config of its own part"):
        apply_lora(policy.model, LoRAConfig(("q_proj",)))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'vla-train\[lora\]'"):
        apply_lora(build().model, LoRAConfig(("q_proj",)))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"rank": 4}, "trainer.lora.modules must name layers"),
        ({"modules": ["head"], "rank": 0}, "trainer.lora.rank': must be >= 1"),
        ({"modules": ["head"], "alpha": 0}, "trainer.lora.alpha': must be >= 1"),
        ({"modules": ["head"], "dropout": 1}, "trainer.lora.dropout': must be in"),
        ({"modules": ["head"], "rnk": 4}, "did you mean 'rank'"),
    ],
)
def test_bad_config(toy_config: Path, node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(load_run_tree([toy_config], [f"trainer.lora={json.dumps(node)}"]))


def test_bf16_weights_merge_in_float32() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    apply_lora(model, LoRAConfig(("0",), rank=2, train_modules=()))
    layer: Any = model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    expected = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    merged = merged_state(model)["0.weight"]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, expected.bfloat16())


LORA = "trainer.lora={modules: [vlm.layers], rank: 4, dropout: 0.1, train_modules: [head]}"


def train(config: Path, *overrides: str) -> tuple[Outcome, Trainer]:
    composed = compose(load_run_tree([config], [LORA, *overrides]))
    run = composed.config
    run_dir = run_directory(run.run_root_dir, run.run_id or "run", run.trainer.resume)
    trainer = Trainer(composed, run_dir, Console(quiet=True), "test")
    trainer.describe()
    return trainer.train(), trainer


def test_a_run_saves_merged_weights(toy_config: Path) -> None:
    start = compose(load_run_tree([toy_config])).policy.model.state_dict()
    outcome, trainer = train(toy_config, "trainer.ema_decay=0.5")
    saved = load_file(outcome.checkpoint / "model.safetensors")
    assert saved.keys() == start.keys()
    changed = {name for name in saved if not torch.equal(saved[name], start[name])}
    adapted = {f"vlm.layers.{i}.weight" for i in range(2)}
    assert changed == adapted | {name for name in saved if name.startswith("head.")}
    loaded = VLAPolicy.from_pretrained(outcome.checkpoint)
    policy = trainer.composed.policy.eval()
    ((name, spec),) = loaded.specs.items()
    observation = make_observation(spec, 0)
    assert trainer.ema is not None
    with trainer.ema.applied():
        (ours,) = policy.act([observation], [0])
    (theirs,) = loaded.act([observation], [0])
    np.testing.assert_allclose(ours.actions, theirs.actions, atol=1e-5)
    assert yaml.safe_load((outcome.checkpoint / "config.yaml").read_text())["trainer"]["lora"]["rank"] == 4
    assert name == "default"


def test_resume_equals_the_uninterrupted_run(toy_config: Path) -> None:
    whole, _ = train(toy_config, "run_id=whole")
    with pytest.MonkeyPatch.context() as patch:
        original = Trainer._save

        def save_and_crash(self: Trainer, step: int) -> Path:
            original(self, step)
            raise KeyboardInterrupt

        patch.setattr(Trainer, "_save", save_and_crash)
        with pytest.raises(KeyboardInterrupt):
            train(toy_config, "run_id=parts", "trainer.save_every=4")
    torch.manual_seed(123)
    parts, _ = train(toy_config, "run_id=parts", "trainer.resume=true")
    a, b = (load_file(o.checkpoint / "model.safetensors") for o in (whole, parts))
    assert all(torch.equal(a[k], b[k]) for k in a)
