"""alg1 in whole runs: schedule, resume, what is trained, and what a checkpoint leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vla_core.policy import VLAPolicy
from vla_train.cli import main
from vla_train.composition import compose
from vla_train.dataloading.data import Collate, TransformedDataset
from vla_train.presets import load_run_tree
from vla_train.trainer import Trainer

STEPS, PHASE_A, RAMP = 6, 2, 3
TERMS = ("dyn_loss", "geo_loss", "reg_loss")


@pytest.fixture
def config(quickstart: dict[str, Any], tmp_path: Path) -> Path:
    quickstart["framework"].update(
        use_geometric_branch=True,
        geometry={"name": "tiny", "patch_size": 16, "encoder_dim": 64, "encoder_depth": 1, "dim": 64,
                  "sharing_depth": 2, "dense_heads": False},
        fusion={"name": "aligned_concat"},
        auxiliary={"name": "alg1", "loss_w_dyn": 0.5, "loss_w_geo": 0.25, "loss_w_reg": 0.125,
                   "sagr_phase_a_steps": PHASE_A, "sagr_phase_b_ramp_steps": RAMP, "latent_dim": 16},
    )  # fmt: skip
    quickstart["trainer"].update(max_steps=STEPS, ema_decay=0.0)
    path = tmp_path / "alg1.yaml"
    path.write_text(yaml.safe_dump(quickstart))
    return path


def lines(run: Path) -> list[dict[str, float]]:
    text = (run / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


@pytest.mark.slow
def test_phase_boundaries_are_exact_after_a_resume(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "runs" / "whole"
    assert main(["--config", str(config), "run_id=whole", "trainer.save_every=2"]) == 0
    for step, line in enumerate(lines(whole), start=1):
        share = min(1.0, max(0, step - PHASE_A) / RAMP)
        assert [line[f"loss_weight/{t}"] for t in TERMS] == [share * w for w in (0.5, 0.25, 0.125)]
        assert all((f"loss/{t}" in line) == (step > PHASE_A) for t in TERMS), "off means not computed"
        if step > PHASE_A:
            parts = sum(line[f"loss/{t}"] * line[f"loss_weight/{t}"] for t in TERMS)
            assert line["loss"] == pytest.approx(line["loss/action_loss"] + parts, rel=1e-5)
    original = Trainer._save
    for cut in (2, 4):  # at the end of phase A, inside the ramp
        name = f"cut_{cut}"

        def save(self: Trainer, step: int, cut: int = cut) -> Path:
            path = original(self, step)
            if step == cut:
                raise KeyboardInterrupt
            return path

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_save", save)
            assert main(["--config", str(config), f"run_id={name}", "trainer.save_every=2"]) == 130
        words = [f"run_id={name}", "trainer.save_every=2", "trainer.resume=true"]
        assert main(["--config", str(config), *words]) == 0
        run = tmp_path / "runs" / name
        weights = [
            load_file(r / "checkpoints" / f"steps_{STEPS}" / "model.safetensors") for r in (whole, run)
        ]
        assert any(key.startswith("auxiliary.") for key in weights[0])
        for key, value in weights[0].items():
            assert torch.equal(value, weights[1][key]), f"{key} after a cut at {cut}"
        keep = ("loss", *(f"loss/{t}" for t in TERMS))
        ours, theirs = ([{k: line.get(k) for k in keep} for line in lines(r)] for r in (whole, run))
        assert ours == theirs


def test_gradients_reach_what_they_should_and_inference_has_none_of_it(config: Path, tmp_path: Path) -> None:
    composed = compose(load_run_tree([config]))
    policy, data = composed.policy, composed.data
    assert policy.model.auxiliary is not None
    pipeline = next(iter(policy.pipelines.values()))
    dataset = TransformedDataset(
        data.train, {pipeline.input_spec.embodiment: pipeline}, 0, False, future=True
    )
    assert policy.collator is not None
    batch = Collate(policy.collator, future=True)([dataset[(i, 10 * i)] for i in range(4)])
    for name in TERMS:
        policy.model.zero_grad(set_to_none=True)
        policy.model(batch)[name].backward()
        moved = {
            key.split(".")[0]
            for key, p in policy.model.named_parameters()
            if p.grad is not None and p.grad.any()
        }
        assert moved == {"vlm", "fusion", "auxiliary"}, name
    policy.eval()
    with torch.no_grad():
        before = policy.model(batch, auxiliary=False)
    assert set(before) == {"action_loss"}
    trainer = Trainer(composed, tmp_path / "run")
    trainer.describe()
    loaded = VLAPolicy.from_pretrained(trainer._write(0, tmp_path / "run" / "steps_0"))
    assert loaded.model.auxiliary is None
    observation = data.train[0][0].observation
    policy.eval()
    (ours,), (theirs,) = (p.act([observation], [1]) for p in (policy, loaded))
    assert (ours.actions == theirs.actions).all()


def test_mistakes_are_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, what in (
        (["trainer.batch_size=1"], "trainer.batch_size: framework.auxiliary needs at least 2 rows"),
        (["trainer.loss_weights={dyn_loss: 2.0}"], "'dyn_loss' has its weight in framework.auxiliary"),
        (["framework.auxiliary.loss_w_dny=1"], "did you mean 'loss_w_dyn'"),
        (["framework.auxiliary.geo_target=depth"], "reads recorded depth of every camera"),
        (["framework.auxiliary.name=alg2"], "did you mean 'alg1'"),
    ):
        assert main(["--config", str(config), "run_id=wrong", *words]) == 2
        err = capsys.readouterr().err.strip()
        assert what in err
        assert "\n" not in err
