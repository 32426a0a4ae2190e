"""``vla-train ablate``: rows that grow, a table that is right, mistakes in one line."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from vla_core.assemble import build_policy
from vla_core.config import build_config
from vla_core.files import sha256_of
from vla_core.framework import FrameworkConfig
from vla_core.registry import names
from vla_core.testing import make_spec
from vla_train import ablate
from vla_train.ablate.axes import parse_axis, split_values
from vla_train.ablate.intervals import estimate, t_quantile
from vla_train.ablate.plan import resolve
from vla_train.ablate.rows import Row, order_of, put_row, read_rows
from vla_train.ablate.table import make_lines, write_tables
from vla_train.cli import main
from vla_train.presets import load_run_tree
from vla_train.trainer import Outcome, Trainer

CONFIGS = Path(__file__).parents[3] / "configs" / "ablations"
LR = "trainer.learning_rate.base=0.01,0.001"
QUICK = ("trainer.max_steps=3", "trainer.log_every=1", "trackers=[jsonl]")


def call(config: Path, out: Path, *words: str, axis: str = LR, seeds: str = "0,1") -> int:
    argv = ["ablate", "--base", str(config), *QUICK, "--axis", axis, "--seeds", seeds, "--out", str(out)]
    return main([*argv, *words])


def fails(capsys: pytest.CaptureFixture[str], config: Path, *words: str, **options: Any) -> str:
    """Expect exit code 2 and one line."""
    assert call(config, config.parent / "out", *words, **options) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err
    return err


@pytest.mark.slow
def test_interrupted_continued_and_the_table_is_right(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, original, runs = toy_config.parent / "out", Trainer.train, []

    def train(self: Trainer) -> Outcome:
        runs.append(self.run_dir)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Trainer, "train", train)
    assert call(toy_config, out) == 130
    assert "the same command" in capsys.readouterr().err
    assert [row.key for row in read_rows(out)] == [(LR.split(",")[0], 0), (LR.split(",")[0], 1)]
    assert call(toy_config, out) == 0
    assert len(runs) == 5  # two, the interrupted one, and the two that were left
    rows = read_rows(out)
    assert len(rows) == 4
    assert {row.status for row in rows} == {"finished"}
    for row in rows:  # what each run itself wrote
        lines = [json.loads(line) for line in (out / row.run / "metrics.jsonl").read_text().splitlines()]
        assert row.action_error == lines[-1]["val/action_mae"] == row.metrics["val/action_mae"]
        speeds = sorted(line["samples_per_s"] for line in lines if "samples_per_s" in line)
        assert row.samples_per_s is not None
        assert min(speeds) <= row.samples_per_s <= max(speeds)
        info = json.loads((out / row.run / "run.json").read_text())
        assert (row.parameters, row.trainable) == tuple(info["parameters"][k] for k in ("total", "trainable"))
        assert info["finished"]
        weights = out / row.run / info["checkpoint"]["path"] / "model.safetensors"
        assert info["checkpoint"]["weights_digest"] == sha256_of(weights)
        meta = json.loads((weights.parent / "meta.json").read_text())
        assert meta["data_digest"] == info["data"]["digest"]
        assert (info["cpu"], info["packages"]["numpy"]) == (info["cpu"] or None, np.__version__)
        assert (out / row.run / "seen.npz").exists()
        assert row.latency_p50_ms is not None
        assert 0 < row.latency_p50_ms < 10_000
        assert (out / row.run / "report.html").exists()
    with (out / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    text = (out / "table.md").read_text()
    for line, mine in zip(table, (rows[:2], rows[2:]), strict=True):
        errors = np.array([row.action_error for row in mine])
        half = 12.706204736 * errors.std(ddof=1) / math.sqrt(2)
        wanted = [errors.mean(), max(0.0, errors.mean() - half), errors.mean() + half]
        got = [float(line[f"action_error_{what}"]) for what in ("mean", "low", "high")]
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
        assert (line["seeds"], line["action_error_n"], line["success_rate"]) == ("0 1", "2", "")
        assert f"| {line['variant']} | 0, 1 | {got[0]:.4g} [{got[1]:.4g}, {got[2]:.4g}] | " in text
    assert (out / "ablation.svg").read_text().lstrip().startswith("<?xml")
    # The same command again runs nothing; another seed is appended; a lone run gives the same numbers.
    assert call(toy_config, out) == 0
    assert len(runs) == 5
    alone = toy_config.parent / "alone"
    assert call(toy_config, alone, axis="trainer.learning_rate.base=0.001", seeds="1") == 0
    assert len(runs) == 6
    assert read_rows(alone)[0].metrics == rows[3].metrics
    # Something else changed since: an error that names the row, and nothing runs.
    capsys.readouterr()
    for changed, what in ((LR, "its config"), ("trainer.learning_rate.base=0.1", "the base")):
        line = fails(capsys, toy_config, "trainer.batch_size=2", axis=changed, seeds="2")
        assert f"row '{rows[0].variant}' seed 0: {what} has changed" in line
        assert "trainer.batch_size was 4, is 2" in line
    assert len(runs) == 6


def test_a_run_cut_off_after_a_save_goes_on_from_there(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole, original, saved = toy_config.parent / "out", toy_config.parent / "whole", Trainer._save, []
    options = {"axis": "trainer.learning_rate.base=0.01", "seeds": "0"}

    def save(self: Trainer, step: int) -> Path:
        path = original(self, step)
        saved.append(step)
        if len(saved) == 1:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(Trainer, "_save", save)
    assert call(toy_config, out, "trainer.save_every=2", **options) == 130
    assert read_rows(out) == []
    assert call(toy_config, out, "trainer.save_every=2", **options) == 0
    assert saved == [2, 3]  # not from the start, which would have saved step 2 again
    assert call(toy_config, whole, "trainer.save_every=2", **options) == 0
    assert read_rows(out)[0].metrics == read_rows(whole)[0].metrics


@pytest.mark.slow
def test_a_failed_run_is_marked_and_tried_again(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, original = toy_config.parent / "out", Trainer.train

    def train(self: Trainer) -> Outcome:
        if self.config.seed == 0:
            raise RuntimeError("out of memory\nand more")
        return original(self)

    axis = "trainer.learning_rate.base=0.01"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", train)
        assert call(toy_config, out, axis=axis) == 1
    assert [(row.seed, row.status, row.error) for row in read_rows(out)] == [
        (0, "failed", "RuntimeError: out of memory"),
        (1, "finished", None),
    ]
    assert "1 of 2 runs failed" in capsys.readouterr().out
    assert "1 (1 failed)" in (out / "table.md").read_text()
    assert call(toy_config, out, axis=axis) == 0
    assert [(row.seed, row.status) for row in read_rows(out)] == [(0, "finished"), (1, "finished")]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("max_steps=1,2", "unknown key 'max_steps' (did you mean 'trainer.max_steps'?)"),
        ("trainer.batch_sise=1,2", "did you mean 'batch_size'"),
        ("fuson=none,gated", "did you mean 'fusion'"),
        ("fusion=none,gate", "framework.geometry and framework.fusion must both be set"),
        ("@nowhere.yaml", "nowhere.yaml: no such config file"),
        ("trainer.schedule", "must read KEY=a,b"),
        ("trainer.schedule=cosine,", "an empty value"),
        ("trainer.schedule=cosine,cosine", "stands there twice"),
        ("trainer.schedule=lineal,cosine", "trainer.schedule"),
        ("trainer.clip_norm=1,1.0", "are the same config"),
        ("trainer.max_steps=2,4", "sets what --axis trainer.max_steps varies"),
        ("seed=1,2", "use --seeds"),
    ],
)
def test_a_wrong_axis_is_one_line(
    toy_config: Path, capsys: pytest.CaptureFixture[str], axis: str, expected: str
) -> None:
    assert expected in fails(capsys, toy_config, axis=axis)


def test_other_mistakes_are_one_line(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--seeds 0,x" in fails(capsys, toy_config, seeds="0,x")
    assert "--seeds" in fails(capsys, toy_config, seeds="0,0")
    assert "--seeds must be in [0, 4294967295], got -1" in fails(capsys, toy_config, seeds="0,-1")
    assert "use --seeds" in fails(capsys, toy_config, "seed=3")
    assert "both set" in fails(capsys, toy_config, "--axis", "trainer.learning_rate={base: 1},{base: 2}")
    assert "unknown key 'trainer.max_step'" in fails(capsys, toy_config, "trainer.max_step=3")
    assert "expected one argument" in fails(capsys, toy_config, "--axis")
    assert main(["ablate", "--out", "x"]) == 2
    assert "--base is missing" in capsys.readouterr().err
    (toy_config.parent / "out").mkdir(exist_ok=True)
    (toy_config.parent / "out" / "rows.jsonl").write_text("{}\n")
    assert "rows.jsonl:1: not a row" in fails(capsys, toy_config)


def test_axis_values() -> None:
    assert split_values("[1,2],{a: [3,4]},'x,y'") == ["[1,2]", "{a: [3,4]}", "'x,y'"]
    none, gated = parse_axis("fusion=none,gated").values
    assert none.overrides == ("framework.use_geometric_branch=false",)
    assert gated.overrides == ("framework.fusion.name=gated", "framework.use_geometric_branch=true")


def test_overlays_and_cross_products(toy_config: Path) -> None:
    for name, rate in (("slow", 1e-4), ("fast", 1e-2)):
        node = {"trainer": {"learning_rate": {"base": rate}}}
        (toy_config.parent / f"{name}.yaml").write_text(yaml.safe_dump(node))
    files = f"@{toy_config.parent}/slow.yaml,{toy_config.parent}/fast.yaml"
    axes = [parse_axis(files), parse_axis("trainer.batch_size=2,4")]
    plan = ablate.make_plan([toy_config], axes, [0])
    assert [variant.label for variant in plan.variants] == [
        "slow,trainer.batch_size=2",
        "slow,trainer.batch_size=4",
        "fast,trainer.batch_size=2",
        "fast,trainer.batch_size=4",
    ]
    assert plan.variants[2].config["trainer"]["learning_rate"] == {"base": 0.01}
    assert plan.variants[2].config["trainer"]["batch_size"] == 2
    assert len({variant.folder for variant in plan.variants}) == 4


def test_intervals() -> None:
    table = {1: 12.7062047, 2: 4.30265273, 3: 3.18244631, 9: 2.26215716, 29: 2.04522964, 200: 1.97189622}
    assert {n: round(t_quantile(n), 6) for n in table} == {n: round(t, 6) for n, t in table.items()}
    assert estimate([]) is None
    one = estimate([2.0])
    assert one is not None
    assert (one.mean, one.low, one.n) == (2.0, None, 1)
    # An error or a time is never below 0; a difference may be.
    wide, signed = estimate([0.1, 0.9]), estimate([0.1, 0.9], signed=True)
    assert wide is not None
    assert signed is not None
    assert wide.low == 0.0
    assert signed.low == pytest.approx(0.5 - 12.7062047 * 0.8 / 2)
    assert wide.high == signed.high


def test_variants_are_compared_with_the_first_seed_by_seed(tmp_path: Path) -> None:
    base = Row("base", 0, "finished", {}, (), {}, parameters=1, action_error=0.5)
    for seed, error in enumerate((0.5, 0.1, 0.9)):
        put_row(tmp_path, replace(base, seed=seed, action_error=error))
    # 0.01 better in each seed that both have, far less than seeds differ.
    for seed, error in ((0, 0.49), (1, 0.09), (7, 0.3)):
        put_row(tmp_path, replace(base, variant="better", seed=seed, action_error=error))
    first, second = make_lines(read_rows(tmp_path))
    assert first.difference is None
    assert second.difference is not None
    assert second.difference.n == 2
    assert second.difference.mean == pytest.approx(-0.01)
    assert second.difference.high is not None
    assert second.difference.high < 0
    write_tables(read_rows(tmp_path), tmp_path)
    with (tmp_path / "table.csv").open() as file:
        assert float(list(csv.DictReader(file))[1]["action_error_minus_first_mean"]) == pytest.approx(-0.01)
    drawn = (tmp_path / "ablation.svg").read_text()
    for said in ("normalised; lower is better", "n = 3 seeds", "difference to base", "n = 2 pairs of seeds"):
        assert said in drawn


def test_closed_loop_counts_of_all_tasks_are_in_the_row(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, rate = [], {"success_rate": 0.5, "interval": (0.1, 0.9)}

    def evaluated(checkpoint: Path, config: Any, run_dir: Path, device: str, _: Any) -> dict[str, Any]:
        calls.append((checkpoint.name, config.tasks, run_dir.name, device))
        return {
            "tasks": [
                {"task": "reach", "successes": 2, "episodes": 3, "failed": 1, **rate},
                {"task": "push", "successes": 1, "episodes": 4, "failed": 0, **rate},
            ]
        }

    monkeypatch.setattr("vla_train.runs.evaluate", evaluated)
    monkeypatch.setattr("vla_train.runs.check_evaluation", lambda *_: None)
    out = toy_config.parent / "out"
    words = ("trainer.evaluation.tasks=[reach,push]",)
    assert call(toy_config, out, *words, axis="trainer.learning_rate.base=0.01", seeds="0") == 0
    assert calls == [("steps_3", ("reach", "push"), "seed_0", "cpu")]
    assert read_rows(out)[0].success == {"successes": 3, "episodes": 7, "failed": 1}
    assert "(3/7)" in (out / "table.md").read_text()


def test_variants_stand_as_planned_whichever_run_ends_first(tmp_path: Path) -> None:
    row = Row("none", 0, "finished", {}, (), {}, action_error=0.5)
    plan = ["none", "gated"]
    for done in ("gated", "none"):
        put_row(tmp_path, replace(row, variant=done), order_of(read_rows(tmp_path), plan))
    assert [line.variant for line in make_lines(read_rows(tmp_path))] == plan
    # A later plan is compared with what the table began with.
    order = order_of(read_rows(tmp_path), ["film", "gated"])
    for done in ("gated", "film"):
        put_row(tmp_path, replace(row, variant=done, seed=1), order)
    assert [line.variant for line in make_lines(read_rows(tmp_path))] == ["none", "gated", "film"]


def test_success_is_pooled_with_its_wilson_interval(tmp_path: Path) -> None:
    row = Row(
        "a", 0, "finished", {}, (), {}, parameters=1, success={"successes": 7, "episodes": 10, "failed": 0}
    )
    put_row(tmp_path, row)
    put_row(tmp_path, replace(row, seed=1, success={"successes": 9, "episodes": 10, "failed": 0}))
    (line,) = make_lines(read_rows(tmp_path))
    assert line.success is not None
    p, n, z = 0.8, 20, 1.959963985
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    wanted = [(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    np.testing.assert_allclose(line.success.interval, wanted, rtol=1e-6)
    write_tables(read_rows(tmp_path), tmp_path)
    assert "80.0 % [58.4, 91.9] (16/20)" in (tmp_path / "table.md").read_text()
    assert "success %" in (tmp_path / "ablation.svg").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not CONFIGS.exists(), reason="configs/ablations is part of the repository, not the wheel")
def test_every_shipped_config_builds_and_differs_in_its_axis_alone() -> None:
    base = CONFIGS / "base.yaml"
    overlays = {path.stem: path for path in CONFIGS.glob("*.yaml") if path != base}
    alg1 = "ab_b_concat_cross_geometric_alg1"
    abs_ = {"ab_a_pure_cross", "ab_b_concat_cross", "ab_b_concat_cross_geometric", alg1}
    assert overlays.keys() == {"none", *names("vla.fusions"), *abs_}
    for name, path in overlays.items():
        node = yaml.safe_load(path.read_text())
        assert node.keys() == {"framework"}
        wanted = {"fusion", "use_geometric_branch", "head"} | ({"auxiliary"} if name == alg1 else set())
        assert node["framework"].keys() <= wanted
        tree = load_run_tree([base, path])
        resolve(tree)
        framework = build_config(FrameworkConfig, tree.data["framework"], "framework", tree)
        spec = make_spec(n_cameras=2, height=128, width=128, horizon=framework.horizon)
        torch.manual_seed(0)
        policy = build_policy(framework, {spec.embodiment: spec}, tree=tree)
        geometric = name not in {"none", "ab_a_pure_cross", "ab_b_concat_cross"}
        assert (policy.model.fusion is not None) == geometric
        assert (policy.model.auxiliary is not None) == (name == alg1)
        if name in names("vla.fusions"):
            assert policy.config["fusion"]["name"] == name
        assert policy.config["head"]["use_concat_cross_context"] == name.startswith("ab_b")
