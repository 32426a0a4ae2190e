"""Probes on small trained weights: what a policy makes of geometry that is out of place, and of words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from vla_core.envs._metaworld_phrasings import PHRASINGS
from vla_core.interfaces import GeometryFeatures
from vla_core.policy import VLAPolicy
from vla_core.types import Observation
from vla_train.composition import Composed, compose
from vla_train.presets import load_run_tree
from vla_train.trainer import Trainer

ROOT = Path(__file__).parents[1]
BASE = ROOT / "configs" / "ablations" / "base.yaml"
ROWS = 32

pytestmark = pytest.mark.slow


def trained(dataset: Path, tmp_path: Path, steps: int, *words: str) -> Composed:
    """A policy trained for a while on the shipped demonstrations, in evaluation mode."""
    own = [f"trainer.max_steps={steps}", "trainer.val_samples=8", "trainer.device=cpu", "trackers=[jsonl]"]
    own += ["trainer.threads=1", f"datasets.train=[{{name: arrays, path: {dataset}}}]"]
    composed = compose(load_run_tree([BASE], [*own, *words]))
    (tmp_path / "run").mkdir()
    Trainer(composed, tmp_path / "run", Console(quiet=True)).train()
    composed.policy.eval()
    return composed


def held_out(composed: Composed) -> list[Observation]:
    source = composed.data.val[0]
    return [source[i * (len(source) // ROWS)].observation for i in range(ROWS)]


def actions(policy: VLAPolicy, observations: list[Observation]) -> Tensor:
    """Normalised chunks, with the same noise in every call."""
    assert policy.collator is not None
    shape = (len(observations), policy.collator.horizon, policy.collator.action_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.model.predict(policy.collate(observations), noise)


def between_positions(features: GeometryFeatures) -> GeometryFeatures:
    b, v, h, w, c = features.tokens.shape
    order = torch.randperm(v * h * w, generator=torch.Generator().manual_seed(0))
    return replace(features, tokens=features.tokens.flatten(1, 3)[:, order].view(b, v, h, w, c))


@pytest.mark.exhaustive
def test_mean_pool_does_not_know_where_things_are(small_faucet: Path, tmp_path: Path) -> None:
    words = ["framework.use_geometric_branch=true", "framework.fusion.name=mean_pool"]
    composed = trained(small_faucet, tmp_path, 60, *words)
    observations = held_out(composed)
    before = actions(composed.policy, observations)
    geometry: Any = composed.policy.model.geometry
    geometry.register_forward_hook(lambda _module, _inputs, features: between_positions(features))
    moved = (actions(composed.policy, observations) - before).abs().max() / before.std()
    assert moved < 1e-3, "only rounding: the mean over positions is what it was"


@pytest.mark.timeout(600)  # it trains: 108 s on an idle core
def test_another_phrasing_moves_the_actions_far_less_than_the_opposite_instruction(
    small_faucet: Path, tmp_path: Path
) -> None:
    words = ["trainer.learning_rate.base=3e-3", "trainer.ema_decay=0.9"]
    composed = trained(small_faucet, tmp_path, 120, *words)
    policy, observations = composed.policy, held_out(composed)
    assert policy.model.geometry is None, "no geometry, so none can move the actions"
    for task, other in (("faucet-open", "faucet-close"), ("faucet-close", "faucet-open")):
        mine = [o for o in observations if o.instruction in PHRASINGS[task].train]
        assert len(mine) > 5
        before = actions(policy, mine)

        def moved(words: str, mine: list[Observation] = mine, before: Tensor = before) -> float:
            said = [replace(observation, instruction=words) for observation in mine]
            return float((actions(policy, said) - before).abs().mean())

        opposite = min(moved(words) for words in PHRASINGS[other].train)
        assert moved(PHRASINGS[task].heldout[0]) < 0.25 * opposite
