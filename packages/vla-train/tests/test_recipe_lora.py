"""configs/recipes/lora_24gb.yaml: it trains at tiny size, merged answers are the adapters', and it fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from vla_core.build import ModelDims, build_model
from vla_core.config import build_config
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.resolve import resolve
from vla_core.testing import make_observation
from vla_train.composition import compose
from vla_train.config import RunConfig
from vla_train.engine import make_engine
from vla_train.lora import apply_lora
from vla_train.memory.estimate import GIB, estimate
from vla_train.optimizer.precision import set_precision
from vla_train.presets import load_run_tree
from vla_train.testing import framework_tree
from vla_train.trainer import Trainer

pytest.importorskip("peft")

RECIPE = Path(__file__).parents[3] / "configs" / "recipes" / "lora_24gb.yaml"
pytestmark = pytest.mark.skipif(not RECIPE.exists(), reason="needs the repository's configs/")


def test_the_recipe_at_tiny_size(toy_config: Path) -> None:
    """In fp32, where merged and unmerged can be compared to the last digits."""
    recipe = yaml.safe_load(RECIPE.read_text())
    words = [f"vlm.{key}={value}" for key, value in recipe["framework"]["vlm"].items()]
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree(recipe["framework"]["name"], "tiny", words).data["framework"]
    node["framework"] |= {"horizon": 4, "transforms": [{"name": "normalize"}]}
    node["trainer"] = recipe["trainer"] | {"max_steps": 3, "device": "cpu", "precision": "fp32"}
    node["trainer"] |= {"val_every": 0, "learning_rate": {"base": 0.02}, "moments": "fp32"}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    composed = compose(load_run_tree([toy_config]))
    start = {name: value.clone() for name, value in composed.model.state_dict().items()}
    trainer = Trainer(composed, toy_config.parent / "run", Console(quiet=True))
    trainer.describe()
    outcome = trainer.train()
    loaded = VLAPolicy.from_pretrained(outcome.checkpoint)
    merged = loaded.model.state_dict()
    assert merged.keys() == start.keys()
    moved = {name for name in merged if not torch.equal(merged[name], start[name].to(merged[name].dtype))}
    assert any(name.startswith("vlm.model.language_model.") for name in moved)
    assert all(name.startswith(("vlm.model.language_model.", "head.")) for name in moved)
    (spec,) = loaded.specs.values()
    observations = [make_observation(spec, i) for i in range(2)]
    ours = composed.policy.eval().act(observations, [1, 2])
    theirs = loaded.act(observations, [1, 2])
    scale = max(float(np.abs(chunk.actions).max()) for chunk in ours)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-5 * max(1.0, scale))


@pytest.mark.slow
def test_the_full_size_leaves_room_for_activations() -> None:
    """Of 22 GiB: what is kept whatever the batch, of the true shapes."""
    tree = load_run_tree([RECIPE])
    config = build_config(RunConfig, tree.data, "", tree)
    full = framework_tree("QwenGR00T", "full")
    framework = build_config(FrameworkConfig, full.data["framework"], "framework", full)
    model = build_model(resolve(framework, full), ModelDims(2, (224, 224), 7, 7, 8, 1), device="meta")
    engine = make_engine(config.trainer)
    assert config.trainer.lora is not None
    apply_lora(model, config.trainer.lora)
    set_precision(model, config.trainer, engine)
    kept = estimate(model, config.trainer, engine)
    assert 3.5e9 < sum(p.numel() for p in model.parameters()) < 4.5e9
    assert kept.total < 12 * GIB
