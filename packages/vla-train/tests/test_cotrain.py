"""Jobs vlm and cotrain: the same loop over conversations, alone or beside robots; resumed exactly."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from vla_core.errors import ConfigError, UserError
from vla_core.policy import VLAPolicy
from vla_train.cli import main
from vla_train.composition import compose
from vla_train.presets import load_run_tree

VLM = {
    "name": "qwen3_vl",
    "base_vlm": "tiny",
    "prompt": "{prefix}{images}{instruction}{suffix}{queries}",
    "max_text_tokens": 16,
    "tiny": {
        "hidden_size": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "intermediate_size": 32,
        "vision_hidden": 16, "vision_depth": 1, "vision_heads": 2, "vision_intermediate": 16,
        "patch_size": 8, "merge_size": 1, "deepstack": [0],
    },
}  # fmt: skip


@pytest.fixture
def both(toy_config: Path, tmp_path: Path) -> Path:
    """A config with the toy robot and nine conversations of very different length, some without a picture."""
    rng = np.random.default_rng(0)
    talks: list[dict[str, Any]] = []
    for i in range(9):
        question = {"from": "human", "value": "<image>" * (i % 3) + f" what is {i}?"}
        answer = {"from": "gpt", "value": "red " * (1 + 3 * i)}
        for k in range(i % 3):
            Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(tmp_path / f"{i}-{k}.png")
        talks.append(
            {"images": [f"{i}-{k}.png" for k in range(i % 3)], "conversations": [question, answer] * 1}
        )
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    node = yaml.safe_load(toy_config.read_text())
    node["framework"]["vlm"] = VLM
    sources = [{"name": "llava", "annotation_path": str(tmp_path / "talks.json")}]
    node["datasets"]["vlm"] = {"sources": sources, "max_tokens": 96, "batch_size": 4, "image_size": [16, 16]}
    node["trainer"] |= {"max_steps": 4, "log_every": 1, "val_every": 0, "schedule": "constant"}
    node["datasets"]["val_fraction"] = 0
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    return toy_config


def run(config: Path, name: str, *words: str) -> Path:
    assert main(["--config", str(config), f"run_id={name}", *words]) == 0
    return config.parent / "runs" / name


def weights(run_dir: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"steps_{step}" / "model.safetensors")


def curves(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith(("step", "loss", "lr", "grad"))} for line in lines]


def test_a_policys_config_trains_its_backbone_alone(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rates, freezing and weights of its other parts were modules that there are not."""
    node = yaml.safe_load(both.read_text())
    node["trainer"] |= {
        "job": "vlm",
        "learning_rate": {"base": 0.01, "vlm": 0.02, "head": {"blocks": 0.03}},
        "freeze_modules": ["head", "vlm.model.visual"],
        "unfreeze": {2: ["vlm.model.language_model.layers.0", "head"], 3: "geometry"},
        "loss_weights": {"action_loss": 2.0, "vlm_loss": 0.5},
        "max_steps": 2,
    }
    both.write_text(yaml.safe_dump(node))
    run_dir = run(both, "talker")
    out = capsys.readouterr().out
    for key in (
        "learning_rate.head.blocks", "freeze_modules: head", "unfreeze.2: head", "unfreeze.3: geometry",
        "loss_weights.action_loss",
    ):  # fmt: skip
        assert f"trainer.{key} has no effect: the backbone alone trains (trainer.job: vlm)\n" in out
    kept = yaml.safe_load((run_dir / "config.yaml").read_text())["trainer"]
    assert kept["learning_rate"] == {"base": 0.01, "vlm": 0.02}
    assert kept["freeze_modules"] == ["vlm.model.visual"]
    assert run(both, "talker", "trainer.resume=true", "trainer.max_steps=3") == run_dir


def test_what_counts_nothing_without_robots_is_said(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dry_run", "trainer.job=vlm", "trainer.batch_size=3", "trainer.val_samples=7"]
    assert main(["--config", str(both), *words]) == 0
    said = (
        "trainer.batch_size: 3 is of robots' samples, and this run has none; conversations come 4 at a time"
    )
    out = capsys.readouterr().out
    assert said in out
    assert "trainer.val_samples has no effect: conversations are not held out\n" in out
    words = ["trainer.job=vlm", "trainer.batch_size=3", "datasets.vlm.batch_size=null"]
    assert main(["--config", str(both), "--dry_run", *words]) == 0
    assert "robots' samples" not in capsys.readouterr().out


@pytest.mark.parametrize("job", ["cotrain", "vlm"])
def test_resume_equals_the_uninterrupted_run(both: Path, job: str) -> None:
    words = (f"trainer.job={job}", "trainer.gradient_accumulation_steps=2")
    whole = run(both, "whole", *words)
    parts = run(both, "parts", *words, "trainer.max_steps=2")
    torch.manual_seed(123)  # whatever else the process did must not matter
    run(both, "parts", *words, "trainer.resume=true", "datasets.num_workers=1")
    a, b = weights(whole), weights(parts)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    curve = curves(whole)
    assert curve == curves(parts)
    logged = [line for line in curve if "loss" in line]
    assert len({line["loss/vlm_loss"] for line in logged}) == 4
    if job == "vlm":
        assert all(line["loss"] == line["loss/vlm_loss"] for line in logged), "one loss, which weighs 1"
        assert {key.partition(".")[0] for key in a} == {"vlm"}
        return
    for line in logged:
        total = line["loss/action_l1"] + 0.1 * line["loss/vlm_loss"]
        assert line["loss"] == pytest.approx(total, rel=1e-6)


def test_the_loss_scale_is_what_it_says(both: Path) -> None:
    robots = run(both, "robots", "trainer.job=vla")
    words = ("trainer.job=cotrain", "trainer.max_steps=1")
    first, plain = (
        curves(run(both, "scaled", *words, "trainer.loss_scale={vla: 2.0, vlm: 0.0}"))[0],
        curves(robots)[0],
    )
    assert "loss/vlm_loss" not in plain
    assert first["loss/action_l1"] == pytest.approx(plain["loss/action_l1"], rel=1e-6)
    assert first["loss"] == pytest.approx(2 * plain["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_backbone_trained_alone_starts_a_policy(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = run(both, "alone", "trainer.job=vlm", "trainer.max_steps=2")
    checkpoint = alone / "checkpoints" / "steps_2"
    start = f"trainer.pretrained_checkpoint={checkpoint}"
    config = both.parent / "policy.yaml"
    config.write_text(both.read_text())
    tree = load_run_tree([config], [start, "trainer.reload_modules=[vlm]", "trainer.job=cotrain"])
    loaded = compose(tree).model.state_dict()
    for name, value in weights(alone, 2).items():
        assert torch.equal(loaded[name], value), name
    assert any(name.startswith("head.") for name in loaded)
    # A whole policy it is not.
    assert main(["--config", str(config), "run_id=x", start]) == 2
    assert "trainer.reload_modules" in capsys.readouterr().err
    with pytest.raises(UserError, match="a backbone alone"):
        VLAPolicy.from_pretrained(checkpoint)
    # And a policy is a start for its backbone.
    policy = run(both, "policy", "trainer.max_steps=1", start, "trainer.reload_modules=[vlm]")
    VLAPolicy.from_pretrained(policy / "checkpoints" / "steps_1")
    again = run(
        both, "again", "trainer.job=vlm", "trainer.max_steps=1", "trainer.learning_rate.base=0",
        f"trainer.pretrained_checkpoint={policy / 'checkpoints' / 'steps_1'}",
    )  # fmt: skip
    before = weights(policy, 1)
    assert all(torch.equal(before[name], value) for name, value in weights(again, 1).items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.job=vlm", "datasets.vlm=null"], "trainer.job: vlm needs datasets.vlm"),
        (["trainer.job=cotrain", "datasets.train=[]"], "trainer.job: cotrain needs datasets.train"),
        (["trainer.job=vlm", "trainer.keep_best=val/loss"], "trainer.keep_best: a run without robots"),
        (["datasets.vlm.image_size=[32, 32]"], "a backbone has one size"),
        (["trainer.job=vlm", "datasets.vlm.image_size=null"], "datasets.vlm.image_size is not set"),
        (["datasets.vlm.sources=[]"], "'datasets.vlm.sources' must list"),
        (["datasets.vlm.sources=[{name: lava}]"], "did you mean 'llava'"),
        (["datasets.vlm.sources.0.annotation_path=gone.json"], "datasets.vlm.sources.0: gone.json"),
        (["datasets.vlm.max_tokens=8"], "talks.json: entry 0: .* more than datasets.vlm.max_tokens = 8"),
        (["trainer.loss_scale.vlm=-1"], "trainer.loss_scale.vlm'?: must be >= 0"),
        (["trainer.loss_scale={vla: 0, vlm: 0}"], "vla and vlm are 0, so nothing would be learned"),
        (["trainer.job=vla", "trainer.loss_scale.vla=0"], "vla is 0, so nothing would be learned"),
        (["framework.vlm={name: fake}"], "'fake' cannot be trained on conversations"),
    ],
)
def test_one_line_for_what_does_not_fit(
    both: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    if words[0].startswith("framework.vlm"):
        node = yaml.safe_load(both.read_text())
        node["framework"]["vlm"] = {"name": "fake"}
        both.write_text(yaml.safe_dump(node))
        words = words[1:]
    assert main(["--config", str(both), "run_id=x", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert error.count("\n") == 1
    assert not (both.parent / "runs" / "x" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.loss_scale.vlm=0"], "the conversations weigh 0 in the loss (trainer.loss_scale)"),
        (["trainer.loss_scale.vla=0"], "the robots weigh 0 in the loss (trainer.loss_scale)"),
        (["trainer.job=vla", "trainer.loss_scale.vlm=1"], "loss_scale.vlm has no effect: there are no conv"),
        (
            ["trainer.job=vlm", "trainer.loss_scale.vla=2"],
            "loss_scale.vla has no effect: there are no robots",
        ),
        (["trainer.job=vlm", "trainer.loss_scale.vlm=2"], "loss_scale.vlm has no effect: the only loss"),
        (["trainer.loss_scale={vla: 2, vlm: 1}"], None),
    ],
)
def test_losses_that_weigh_nothing_are_said(
    both: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str | None
) -> None:
    assert main(["--config", str(both), "--dry_run", *words]) == 0
    out = capsys.readouterr().out
    assert ("loss_scale" in out) == (said is not None)
    assert said is None or said in out


def test_a_missing_image_ends_the_run_with_its_entry(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (both.parent / "7-0.png").unlink()
    for workers in (0, 1):
        words = ["trainer.job=vlm", "run_id=x", f"datasets.num_workers={workers}"]
        assert main(["--config", str(both), *words]) == 2
        error = capsys.readouterr().err
        assert "entry 7: there is no image" in error
        assert error.count("\n") == 1


def test_the_data_decide_the_job_and_a_dry_run_shows_it(both: Path) -> None:
    node = yaml.safe_load(both.read_text())
    jobs = {"cotrain": {}, "vlm": {"train": []}, "vla": {"vlm": None}}
    for job, change in jobs.items():
        config = both.parent / f"{job}.yaml"
        config.write_text(yaml.safe_dump({**node, "datasets": {**node["datasets"], **change}}))
        assert compose(load_run_tree([config])).config.job == job
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    from vla_train.runs import execute

    execute(load_run_tree([both]), console, [], dry=True)
    text = console.export_text()
    assert "conversations: 9 in 1 data set, 4 a micro-batch and process, packed into rows" in text
    assert "segment_ids int64" in text
    with pytest.raises(ConfigError, match="must list at least one data set"):
        compose(load_run_tree([both.parent / "vla.yaml"], ["datasets.train=[]"]))


@pytest.mark.slow
@pytest.mark.parametrize("job", ["cotrain", "vlm"])
def test_two_ranks_are_one_run_and_resume(both: Path, two_ranks: Any, job: str) -> None:
    common = ["--config", str(both), f"trainer.job={job}", "trainer.eps=1e-3"]
    half = ["trainer.batch_size=2", "datasets.vlm.batch_size=2"]
    shared = ["run_id=shared", "trainer.sharding=fsdp2"]
    two_ranks.launch(
        {
            "ranks": [*common, *half, "run_id=ranks"],
            "begun": [*common, *half, "run_id=parts", "trainer.max_steps=2"],
            "rest": [*common, *half, "run_id=parts", "trainer.resume=true"],
            "shared_begun": [*common, *half, *shared, "trainer.max_steps=2"],
            "shared_rest": [*common, *half, *shared, "trainer.resume=true"],
        }
    )
    runs = both.parent / "runs"
    a, b = weights(runs / "ranks"), weights(runs / "parts")
    assert all(torch.equal(a[k], b[k]) for k in a), "resumed bit for bit"
    assert curves(runs / "ranks") == curves(runs / "parts")
    # The halves of two ranks pack otherwise, and have other numbers of answer tokens; the step is the same.
    whole = run(both, "whole", *common[2:])
    one = weights(whole)
    assert max(float((one[k] - a[k]).abs().max()) for k in one) < 2e-6
    for name in ("ranks", "shared"):
        for x, y in zip(curves(whole), curves(runs / name), strict=True):
            for key in x.keys() & {"loss", "loss/vlm_loss", "grad_norm"}:
                assert y[key] == pytest.approx(x[key], rel=2e-5), key
