"""The programs of benchmarks/fusion: correspondences are true, and differences are paired."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from vla_train.ablate import Row

HERE = Path(__file__).parents[1] / "benchmarks" / "fusion"


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    for name in ("pretrain", "table", "constant_depth", "probe"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_plane_seen_by_two_cameras_matches_patch_by_patch() -> None:
    """Two cameras side by side look at a wall: the second sees every point further to the left."""
    from pretrain import matches

    size, patch, focal, wall = 64, 8, 64.0, 2.0
    depth = torch.full((1, 2, size, size), wall)
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]).expand(1, 2, 3, 3)
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    patches = torch.arange(64).view(1, 8, 8)
    index, visible = matches(depth, intrinsics, poses, (8, 8))
    assert torch.equal(index.view(1, 8, 8), patches)
    assert visible.all()
    poses[0, 1, 0, 3] = 2 * patch * wall / focal  # two patches to the right
    index, visible = matches(depth, intrinsics, poses, (8, 8))
    assert torch.equal(index.view(1, 8, 8)[..., 2:], patches[..., :-2])
    assert visible.view(1, 8, 8)[..., 2:].all()
    assert not visible.view(1, 8, 8)[..., :2].any()
    depth[:, 1] = 1.0  # something stands in between
    assert not matches(depth, intrinsics, poses, (8, 8))[1].any()


def test_differences_are_paired() -> None:
    from table import difference, markdown

    rng = np.random.default_rng(0)
    starts = rng.random(20) < 0.5

    def line(seed: int, more: float, flip: int) -> dict[str, object]:
        won = starts.copy()
        won[:flip] = True
        errors = {str(i): 0.1 * i + 0.01 * seed + more for i in range(5)}
        success = {where: {"task": won.tolist()} for where in ("same", "shift")}
        return {"seed": seed, "errors": {"held_same": errors, "held_shift": errors}, "success": success}

    lines = {"none": {s: line(s, 0.0, 0) for s in (0, 1)}, "gated": {s: line(s, 0.05, 20) for s in (0, 1, 2)}}
    # Errors vary between episodes and seeds, their difference does not: the interval has no width.
    assert difference(lines, "gated", "none", "same", "error") == pytest.approx((0.05, 0.05, 0.05))
    gain = difference(lines, "gated", "none", "shift", "success")
    assert gain is not None
    mean, low, high = gain
    assert mean == pytest.approx(1 - starts.mean())
    assert 0 < low < mean < high < 1
    assert difference(lines, "none", "none", "same", "error") is None
    assert "| gated | 3 | 60 |" in markdown(lines)


def test_later_results_join_the_seeds_of_earlier_ones(tmp_path: Path) -> None:
    from table import load

    earlier, later = tmp_path / "earlier.jsonl", tmp_path / "later.jsonl"
    old = [("none", 0), ("none", 3), ("gated", 0), ("position_3d", 0)]
    new = [("none", 3), ("gated", 3)]
    for path, rows in ((earlier, old), (later, new)):
        lines = [{"variant": f"fusion={name}", "seed": seed, "from": path.stem} for name, seed in rows]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    lines = load(earlier, later)
    assert {name: sorted(runs) for name, runs in lines.items()} == {"none": [0, 3], "gated": [0, 3]}
    assert [lines["none"][seed]["from"] for seed in (0, 3)] == ["earlier", "later"]
    assert list(load(earlier)) == ["none", "gated", "position_3d"]


def test_a_policy_is_evaluated_once(tmp_path: Path) -> None:
    from evaluate import append, to_evaluate

    rows = [Row("fusion=none", seed, status, (), (), {}, run=f"seed_{seed}")
            for seed, status in ((0, "finished"), (1, "finished"), (2, "failed"))]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), "utf-8")
    for row in rows:
        (tmp_path / row.run).mkdir()
    out, late = tmp_path / "results.jsonl", time.monotonic() + 1000
    one, other = (to_evaluate(tmp_path, out, 0, late) for _ in range(2))
    # Two processes at a time never hold the same run, and what is in the results is not given again.
    held = [next(one).seed, next(other).seed]
    assert held == [0, 1]
    append(out, {"variant": "fusion=none", "seed": 0})
    append(out, {"variant": "fusion=none", "seed": 1})
    assert not [*one, *other]
    out.unlink()
    assert [row.seed for row in to_evaluate(tmp_path, out, 0, late)] == [0, 1]
    assert not list(to_evaluate(tmp_path, out, 0, time.monotonic() - 1))


def test_an_evaluation_ends_with_the_training_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import evaluate

    monkeypatch.setattr(evaluate, "LOOK_S", 0.01)
    with subprocess.Popen([sys.executable, "-c", "pass"]) as trainer:
        trainer.wait()
        assert not list(evaluate.to_evaluate(tmp_path, tmp_path / "out", trainer.pid, time.monotonic() + 60))


def test_constant_depth_changes_the_depth_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import constant_depth

    source, out = tmp_path / "train", tmp_path / "constant"
    source.mkdir()
    depth = np.random.default_rng(0).uniform(0.5, 2, (3, 4, 5)).astype(np.float16)
    np.save(source / "observation.depth.top.npy", depth)
    np.save(source / "action.npy", depth)
    monkeypatch.setattr(sys, "argv", ["x", str(source), str(out)])
    constant_depth.main()
    written = np.load(out / "observation.depth.top.npy")
    assert written.dtype == depth.dtype
    assert np.array_equal(written, np.ones_like(depth))
    assert np.array_equal(np.load(out / "action.npy"), depth)


def test_permuted_tokens_stay_in_their_view() -> None:
    from probe import permuted
    from vla_core.interfaces import GeometryFeatures

    tokens = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5, 1)
    mixed = permuted(GeometryFeatures(tokens)).tokens
    assert not torch.equal(mixed, tokens)
    assert torch.equal(mixed.flatten(2).sort(dim=2).values, tokens.flatten(2))
