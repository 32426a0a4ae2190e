"""What no loss depends on is the same with numbers and without, so that engines of shares freeze it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from vla_core.testing.matrix import variants
from vla_train.config import TrainerConfig
from vla_train.engine import make_engine
from vla_train.memory.activations import activations
from vla_train.optimizer.precision import set_precision
from vla_train.presets import list_presets
from vla_train.reach import unreached
from vla_train.testing import framework_tree
from vla_train.testing.trace import build, training_batch


@pytest.mark.slow
@pytest.mark.parametrize("preset", variants(sorted(list_presets()), ("QwenGR00T", "QwenFast", "PI0")))
def test_the_same_is_found_without_numbers(preset: str) -> None:
    settings = TrainerConfig(device="cpu")
    engine = make_engine(settings)
    model = build(framework_tree(preset, "tiny", []), "tiny").model
    model.register_parameter("spare", torch.nn.Parameter(torch.zeros(3)))
    set_precision(model, settings, engine)
    policy = build(framework_tree(preset, "tiny", []), "tiny")
    batch = training_batch(policy, 2)
    found = activations(model, batch, settings, engine)
    assert not found.why_not
    assert "spare" in found.unreached
    assert list(found.unreached) == unreached(model, batch, engine)


@pytest.mark.slow
def test_fsdp2_freezes_it_and_says_so(toy_config: Path, two_ranks: Any) -> None:
    node = yaml.safe_load(toy_config.read_text())
    node["framework"] = framework_tree("PI0", "tiny").data["framework"] | {"horizon": 4}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    words = ["--config", str(toy_config), "trainer.max_steps=2", "trainer.batch_size=2"]
    runs = {"ddp": [*words, "run_id=ddp"], "fsdp2": [*words, "run_id=fsdp2", "trainer.sharding=fsdp2"]}
    two_ranks.launch(runs)
    alike = [two_ranks.seen(name, rank)["unreached"] for name in runs for rank in (0, 1)]
    assert alike[0]
    assert alike == [alike[0]] * 4
