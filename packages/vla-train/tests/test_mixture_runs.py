"""Runs on several robots at once: figures of each data set, statistics of each robot, bad samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from vla_core.config import load_tree
from vla_core.errors import ConfigError
from vla_core.policy import VLAPolicy
from vla_train.cli import main
from vla_train.composition import compose

TRAIN = [
    {"name": "counted", "number": 0, "robot": "a", "label": "first"},
    {"name": "counted", "number": 1, "robot": "b", "cameras": 3, "dim": 5, "hz": 25.0, "weight": 2},
    {"name": "counted", "number": 2, "robot": "a", "lengths": [4, 9, 4], "weight": 0.5},
]


@pytest.fixture
def mixed(toy_config: Path) -> Path:
    node = yaml.safe_load(toy_config.read_text())
    node["datasets"] = {"train": TRAIN, "val_fraction": 0.3}
    node["framework"]["transforms"] = [{"name": "normalize"}]
    node["framework"]["embodiments"] = {"b": {"transforms": [{"name": "normalize", "action": "min_max"}]}}
    node["trainer"] |= {"batch_size": 8, "log_every": 1, "max_steps": 6, "val_every": 3}
    node["trackers"] = ["jsonl"]
    toy_config.write_text(yaml.safe_dump(node))
    return toy_config


def lines(config: Path, run: str = "toy") -> list[dict[str, Any]]:
    file = config.parent / "runs" / run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_two_robots_and_three_data_sets(mixed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(mixed)]) == 0
    out = capfd.readouterr().out
    assert "mixture of 2 robots: an epoch is" in out
    assert "counted_2" in out
    found = lines(mixed)
    steps = [line for line in found if "loss" in line]
    labels = ("first", "counted", "counted_2")
    for line in steps:
        counts = {label: line[f"data/{label}/samples"] for label in labels}
        assert sum(counts.values()) == 8
        assert all((f"data/{label}/loss" in line) == (n > 0) for label, n in counts.items())
        # The data sets' losses are the loss, apart.
        losses = [line[f"data/{label}/loss"] for label, n in counts.items() if n]
        assert min(losses) - 1e-6 <= line["loss"] <= max(losses) + 1e-6
    for label in labels:
        drawn = sum(line[f"data/{label}/samples"] for line in steps)
        size = {"first": 11, "counted": 11, "counted_2": 8}[label]
        assert abs(drawn / size - steps[-1][f"data/{label}/epochs"]) < 1e-9 or drawn
    validated = [line for line in found if "val/loss" in line]
    for line in validated:
        losses = [line[f"data/{label}/val_loss"] for label in labels]
        assert min(losses) <= line["val/loss"] <= max(losses)
        assert "val/mae/b/arm_4" in line
        assert "val/mae/a/arm_1" in line
    policy = VLAPolicy.from_pretrained(mixed.parent / "runs" / "toy" / "checkpoints" / "steps_6")
    assert list(policy.specs) == ["a", "b"]
    # Of robot a over both its data sets, of robot b alone.
    assert policy.specs["a"].statistics["state"].max[0] > 2000
    assert (
        1000 <= policy.specs["b"].statistics["state"].min[0] <= policy.specs["b"].statistics["state"].max[0]
    )
    assert policy.specs["b"].statistics["state"].max[0] < 2000
    assert policy.specs["b"].action.control_hz == 25.0


@pytest.mark.slow
def test_a_mixture_resumes_with_the_very_next_sample(mixed: Path) -> None:
    words = ["--config", str(mixed), "trainer.schedule=constant", "datasets.num_workers=2"]
    assert main([*words, "run_id=whole"]) == 0
    assert main([*words, "run_id=parts", "trainer.max_steps=3"]) == 0
    assert main([*words, "run_id=parts", "trainer.resume=true"]) == 0
    keep = lambda line: {k: v for k, v in line.items() if k.startswith(("data/", "loss", "val/"))}  # noqa: E731
    whole, parts = ([keep(x) for x in lines(mixed, run) if x["step"] > 3] for run in ("whole", "parts"))
    assert whole == parts


def test_a_batch_pads_what_a_robot_has_not(mixed: Path) -> None:
    composed = compose(load_tree([mixed]))
    from vla_train.trainer import Trainer

    data = Trainer(composed, mixed.parent / "run").robots
    assert data is not None
    batch = data.collate([data.dataset[(0, i)] for i in (0, 11, 22)])
    assert batch.source is not None
    assert batch.source.tolist() == [0, 1, 2]
    assert batch.embodiment.tolist() == [0, 1, 0]
    assert batch.view_mask.tolist() == [[True, False, False], [True] * 3, [True, False, False]]
    assert batch.actions is not None
    assert batch.action_mask is not None
    assert batch.actions.shape == (3, 4, 5)
    assert not batch.action_mask[0, :, 2:].any()
    # What is padded changes nothing: neither the loss nor a gradient.
    model = composed.model
    loss = model(batch)["action_l1"]
    batch.actions[0, :, 2:] = 99.0
    batch.images[0, 1:] = 200
    torch.testing.assert_close(model(batch)["action_l1"], loss)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_go_to_quarantine(mixed: Path, capfd: pytest.CaptureFixture[str], workers: int) -> None:
    node = yaml.safe_load(mixed.read_text())
    node["datasets"] |= {
        "train": [{"name": "counted", "number": 0, "lengths": [40, 40], "bad": [0, 55]},
                  {"name": "counted", "number": 1, "lengths": [40, 40], "robot": "b", "bad": [7, 61]}],
        "val_fraction": 0.0, "on_bad_sample": "quarantine", "bad_sample_budget": 0.03, "num_workers": workers,
    }  # fmt: skip
    node["framework"].pop("embodiments")
    node["trainer"] |= {"batch_size": 16, "max_steps": 10}
    mixed.write_text(yaml.safe_dump(node))
    assert main(["--config", str(mixed)]) == 0
    run = mixed.parent / "runs" / "toy"
    notes = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    places = {(note["data"], note["episode"], note["frame"]) for note in notes}
    # An epoch has passed: each bad sample was met once or, in the place of another, again, and is noted once.
    assert places == {("counted", 0, 0), ("counted", 1, 15), ("counted_2", 0, 7), ("counted_2", 1, 21)}
    assert len(notes) == 4
    assert "broken picture" in notes[0]["why"]
    last = lines(mixed)[-1]
    assert last["data/counted/skipped"] >= 2
    assert last["data/counted_2/skipped"] >= 2
    steps = [line for line in lines(mixed) if "loss" in line]
    assert sum(line["data/counted/samples"] + line["data/counted_2/samples"] for line in steps) == 160
    assert "quarantined: counted, episode" in capfd.readouterr().out
    # Too many of them end the run; without quarantine the first one does.
    assert main(["--config", str(mixed), "run_id=strict", "datasets.bad_sample_budget=0.01"]) == 2
    said = [x for x in capfd.readouterr().err.splitlines() if x.startswith("vla-train: ")]
    assert len(said) == 1
    assert "of 160 samples could not be read, more than datasets.bad_sample_budget=0.01 allows" in said[0]
    assert main(["--config", str(mixed), "run_id=error", "datasets.on_bad_sample=error"]) == 2
    said = [x for x in capfd.readouterr().err.splitlines() if x.startswith("vla-train: ")]
    assert len(said) == 1
    assert "broken picture" in said[0]


def test_what_is_learned_is_kept_under_what_it_is_learned_from(mixed: Path) -> None:
    node = yaml.safe_load(mixed.read_text())
    node["framework"]["transforms"] = [
        {"name": "relative_actions", "mode": "delta", "groups": {"arm": "arm"}}, {"name": "normalize"},
    ]  # fmt: skip
    # Actions relative to a state of other meaning: only the numbers matter here.
    node["datasets"]["train"] = [{"name": "counted", "dim": 1}]
    node["framework"]["transforms"][0]["groups"] = {"arm": "sample"}
    node["framework"].pop("embodiments")
    mixed.write_text(yaml.safe_dump(node))
    kept = mixed.parent / "runs" / ".fitted"

    def statistics(*words: str) -> Any:
        return compose(load_tree([mixed], words)).policy.pipelines["counted"].statistics

    first = statistics()
    assert len(list(kept.iterdir())) == 1
    (entry,) = kept.iterdir()
    file = entry / "statistics.json"
    text = json.loads(file.read_text())
    text["counted"]["action"]["mean"] = [0.123]
    file.write_text(json.dumps(text))
    assert statistics()["action"].mean[0] == 0.123  # taken from there
    assert statistics("datasets.fit_cache=false") == first
    for change in ("datasets.train.0.lengths=[7,6,8]", "datasets.train.0.number=3",
                   "datasets.val_fraction=0.6", "framework.horizon=3",
                   "framework.transforms.0.mode=relative"):  # fmt: skip
        assert statistics(change)["action"].mean[0] != 0.123, change
    assert len(list(kept.iterdir())) == 6


def test_a_named_mixture(mixed: Path) -> None:
    node = yaml.safe_load(mixed.read_text())
    node["datasets"] |= {"mixtures": {"two": TRAIN[:2], "one": TRAIN[2:]}, "mixture": "two"}
    del node["datasets"]["train"]
    mixed.write_text(yaml.safe_dump(node))
    composed = compose(load_tree([mixed]))
    assert composed.data.labels == ["first", "counted"]
    node["framework"].pop("embodiments")
    mixed.write_text(yaml.safe_dump(node))
    assert compose(load_tree([mixed], ["datasets.mixture=one"])).data.labels == ["counted"]
    with pytest.raises(ConfigError, match=r"no mixture 'tw' \(did you mean 'two'"):
        compose(load_tree([mixed], ["datasets.mixture=tw"]))
    with pytest.raises(ConfigError, match=r"datasets\.mixtures\.one\.0.*nmber"):
        compose(load_tree([mixed], ["datasets.mixture=one", "datasets.mixtures.one.0.nmber=1"]))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["datasets.train.1.weight=0"], r"datasets\.train\.1\.weight'?: must be > 0"),
        (["datasets.train.1.weight=much"], r"datasets\.train\.1\.weight"),
        (["datasets.train.1.label=first"], "the label 'first' is given twice"),
        (["datasets.train.1.label=a/b"], "must be of letters"),
        (["datasets.train.1.robot=a"],
         r"of one robot, 'a', must agree: observation\.cameras.*datasets\.train\.1\.embodiment=a_2"),
        (["framework.embodiments={c: {transforms: []}}"], "there is no robot 'c' here"),
        (["datasets.bad_sample_budget=2"], r"bad_sample_budget'?: must be in \[0, 1\]"),
        (["datasets.mixture=x"], "no mixture 'x'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(mixed: Path, words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        compose(load_tree([mixed], words))
    assert "\n" not in str(caught.value)


def test_a_robot_gets_another_name(mixed: Path) -> None:
    words = ["datasets.train.1.robot=a", "datasets.train.1.embodiment=b"]
    composed = compose(load_tree([mixed], words))
    assert list(composed.policy.specs) == ["a", "b"]
    assert main(["--config", str(mixed), *words, "trainer.max_steps=2"]) == 0
    assert np.isfinite(lines(mixed)[-1]["val/loss"])
