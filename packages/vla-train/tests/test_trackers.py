"""The trackers themselves, without a network: what they were told is in their files."""

from __future__ import annotations

import json
import sqlite3
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vla_core.errors import UserError
from vla_train.checkpointing import small_files
from vla_train.cli import main
from vla_train.config import DatasetsConfig, RunConfig
from vla_train.monitoring import trackers
from vla_train.monitoring.trackers import JsonLines, Tracked, TrackingConfig


def call(config: Path, *words: str) -> int:
    return main(["--config", str(config), "trainer.log_every=1", "trainer.val_every=0", *words])


def records(file: Path) -> Iterator[bytes]:
    """Of a file of wandb: LevelDB's log format after a header of 7 bytes (crc 4, length 2, kind 1, data)."""
    content, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_runs(run: Path) -> list[dict[str, Any]]:
    """Of each file that wandb wrote, in their order: the run's id, project, steps and losses."""
    from wandb.proto.wandb_internal_pb2 import Record

    out = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        seen: dict[str, Any] = {"steps": [], "loss": []}
        for data in records(file):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                told = record.run
                seen |= {"id": told.run_id, "project": told.project, "name": told.display_name}
                seen["seed"] = {item.key: item.value_json for item in told.config.update}.get("seed")
            row = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            if "loss" in row:
                seen["steps"].append(int(row["step"]))
                seen["loss"].append(float(row["loss"]))
        out.append(seen)
    return out


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_jsonl_is_written_whatever_is_named(toy_config: Path) -> None:
    twice = RunConfig(datasets=DatasetsConfig(train=[{"name": "toy"}]), trackers=("tensorboard",) * 2)
    assert twice.trackers == ("jsonl", "tensorboard")
    assert call(toy_config, "trackers=[]", "trainer.max_steps=2", "trainer.log_every=1") == 0
    run = toy_config.parent / "runs" / "toy"
    assert len(losses(run)) == 2
    assert (run / "report.html").is_file()


@pytest.mark.slow
def test_wandb_offline(toy_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ("trackers=[jsonl, wandb]", "tracking.project=arms", "trainer.schedule=constant", "seed=3")
    assert call(toy_config, *words, "trainer.max_steps=2") == 0
    assert call(toy_config, *words, "trainer.max_steps=4", "trainer.resume=true") == 0
    run = toy_config.parent / "runs" / "toy"
    first, second = wandb_runs(run)
    assert (first["project"], first["name"], first["seed"]) == ("arms", "toy", "3")
    assert first["id"] == second["id"]
    assert first["steps"] + second["steps"] == [1, 2, 3, 4]
    assert first["loss"] + second["loss"] == pytest.approx(losses(run))


def test_wandb_that_cannot_be_reached_is_one_line(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**options: object) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty).\nCall wandb login.")

    monkeypatch.setattr(wandb, "init", refuse)
    assert call(toy_config, "trackers=[jsonl, wandb]") == 2
    err = capsys.readouterr().err.strip()
    assert "api_key not configured" in err
    assert "WANDB_MODE=offline" in err
    assert "\n" not in err
    assert not (toy_config.parent / "runs" / "toy" / "checkpoints").exists()


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_config: Path) -> None:
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    # It reads its environment variable once, at import.
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    words = ("trackers=[jsonl, trackio]", "tracking.project=arms", "trainer.schedule=constant")
    assert call(toy_config, *words, "trainer.max_steps=2") == 0
    assert call(toy_config, *words, "trainer.max_steps=4", "trainer.resume=true") == 0
    (file,) = (tmp_path / "trackio").glob("arms*.db")
    with sqlite3.connect(file) as data:
        rows = data.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step, id").fetchall()
    told = [(name, step, json.loads(row)["loss"]) for name, step, row in rows if "loss" in json.loads(row)]
    assert [(name, step) for name, step, _ in told] == [("toy", step) for step in (1, 2, 3, 4)]
    assert [loss for *_, loss in told] == pytest.approx(losses(toy_config.parent / "runs" / "toy"))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_package_that_is_missing_is_one_line(
    toy_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(trackers, "find_spec", lambda wanted: None)
    assert call(toy_config, f"trackers=[jsonl, {name}]") == 2
    err = capsys.readouterr().err.strip()
    assert f"pip install 'vla-train[{name}]'" in err
    assert "\n" not in err
    assert not (toy_config.parent / "runs").exists()


def test_all_are_closed_whatever_happens(tmp_path: Path) -> None:
    run = Tracked(tmp_path, 0, {}, TrackingConfig())
    told = trackers.Trackers(("jsonl", "tensorboard"), run)

    def fail() -> None:
        with told:
            told.log(1, {"loss": 2.0})
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
    assert [*(tmp_path / "tensorboard").iterdir()]
    with pytest.raises(ValueError, match="closed"):
        told.log(2, {"loss": 1.0})


def test_a_history_outlives_a_disk_that_is_full_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines after the step of the state are dropped: the others were written anew over the only copy."""
    lines = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (10, 20, 30))
    (tmp_path / "metrics.jsonl").write_text(lines)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    run = Tracked(tmp_path, 20, {}, TrackingConfig())
    monkeypatch.setattr(small_files.os, "fsync", full)
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(No space left on device\)"):
        JsonLines(run)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    monkeypatch.undo()
    jsonl = JsonLines(run)
    jsonl.log(21, {"loss": 0.5})
    jsonl.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        10, 20, 21,
    ]  # fmt: skip
