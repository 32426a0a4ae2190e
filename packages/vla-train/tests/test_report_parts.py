"""What the report says beyond curves: the mean action in words, pictures, videos, what it was made with."""

from __future__ import annotations

import base64
import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vla_core.checkpoint import weights_file
from vla_core.errors import UserError
from vla_core.files import sha256_of
from vla_core.testing import tiny_policy
from vla_train.evaluation.against_mean import against_mean
from vla_train.report import _made_with, write_report

GROUPS = [
    {"name": "end_effector_rotation", "dim": 3, "unit": "rad", "rotation": "euler_xyz"},
    {"name": "gripper", "dim": 1, "unit": "1", "rotation": "none"},
]


def run_of(path: Path, metrics: dict[str, float] | None = None, **info: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_text(json.dumps({"step": 5, "loss": 1.0, **(metrics or {})}))
    (path / "run.json").write_text(json.dumps({"action_groups": GROUPS, **info}))
    return path


def test_the_mean_action_is_compared_in_words() -> None:
    metrics = {
        "val/mae/x": 0.2, "val/mean_mae/x": 0.1, "val/mae/a_y": 0.1, "val/mean_mae/a_y": 0.1,
        "val/mae/z": 0.05, "val/mean_mae/z": 0.1, "val/mae/gripper": 0.01, "val/mean_mae/gripper": 0.0,
    }  # fmt: skip
    found = against_mean(metrics)
    said = "worse than always predicting the mean action in 2 of 3 dims: x, a y (constant: gripper)"
    assert str(found) == said
    better = {**metrics, "val/mae/x": 0.01, "val/mae/a_y": 0.01}
    assert str(against_mean(better)) == (
        "better than always predicting the mean action in all 3 dims (constant: gripper)"
    )
    assert "worse" in str(against_mean({**better, "val/mae/x": float("nan")}))
    assert against_mean({"val/mae/x": 0.2, "val/loss": 1.0}) is None


def test_the_table_names_axes_and_folds_what_is_constant(tmp_path: Path) -> None:
    metrics = {}
    for axis, error in (("roll", 0.2), ("pitch", 0.05), ("yaw", 0.05)):
        metrics[f"val/mae/end_effector_rotation_{axis}"] = error
        metrics[f"val/mean_mae/end_effector_rotation_{axis}"] = 0.1
    metrics |= {"val/mae/gripper": 0.3, "val/mean_mae/gripper": 0.0}
    page = write_report(run_of(tmp_path / "run", metrics)).read_text()
    dims = page[page.index('id="dims"') : page.index('id="seen"')]
    assert "Worse than always predicting the mean action in 1 of 3 dims: end effector rotation roll" in dims
    assert dims.index("end effector rotation yaw") < dims.index("<details>") < dims.rindex("gripper")
    assert "1 dim that never changes" in dims
    assert dims.count("rad") == 3
    assert '<span class="no">200\N{NO-BREAK SPACE}%</span>' in dims


def test_pictures_are_in_the_page_pixel_by_pixel(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.savez(
        run / "seen.npz", label=["mine"], episode=[7], frame=[3], instruction=["open <it>"],
        camera_0_0="top", image_0_0=image, camera_0_1="wrist", image_0_1=image,
    )  # fmt: skip
    page = write_report(run).read_text()
    assert page.count("data:image/png;base64,") == 2
    for text in ("open &lt;it&gt;", "mine, episode 7, frame 3", "wrist, 4 x 4 pixels"):
        assert text in page


def rollout_of(run: Path, video: bytes, weights: str) -> None:
    (run / "rollout" / "videos").mkdir(parents=True)
    (run / "rollout" / "videos" / "a.mp4").write_bytes(video)
    results = {
        "episodes": [{"task": "a", "seed": 1, "success": False, "steps": 9, "video": "a.mp4"}],
        "policy": {"weights_digest": weights, "checkpoint": "runs/x/checkpoints/steps_5"},
        "provenance": {"git_commit": "c0ffee", "cpu": "a CPU", "gpus": ["G", "G"], "python": "3.12.1"},
    }
    (run / "rollout" / "results.json").write_text(json.dumps(results))


def test_a_video_plays_in_the_page_wherever_it_is_sent(tmp_path: Path, monkeypatch) -> None:
    run = run_of(tmp_path / "run")
    rollout_of(run, b"film", "ab" * 32)
    page = write_report(run).read_text()
    assert f'<video src="data:video/mp4;base64,{base64.b64encode(b"film").decode()}"' in page
    # Beyond the budget it is linked.
    monkeypatch.setattr("vla_train.report._media.BUDGET", 3)
    assert '<video src="rollout/videos/a.mp4"' in write_report(run).read_text()


@pytest.mark.parametrize(("weights", "said"), [("ab" * 32, "those of"), ("cd" * 32, "not those of")])
def test_it_says_what_everything_was_made_with(tmp_path: Path, weights: str, said: str) -> None:
    run = run_of(
        tmp_path / "run",
        git_commit="decaf+changes",
        cpu="my CPU",
        gpus=[],
        python="3.12.1",
        data={"digest": "12" * 32},
        checkpoint={"path": "checkpoints/steps_5", "weights_digest": "ab" * 32},
    )
    rollout_of(run, b"film", weights)
    page = write_report(run).read_text()
    reproduce = page[page.index('id="reproduce"') :]
    for text in ("decaf+changes", "my CPU", "12" * 6, "checkpoints/steps_5", "ab" * 6):
        assert text in reproduce
    loop = page[page.index('id="closed-loop"') : page.index('id="training"')]
    for text in ("runs/x/checkpoints/steps_5", weights[:12], "c0ffee", "a CPU", "2 x G", f">{said} "):
        assert text in loop


def test_the_machine_that_answered_is_another_than_the_simulator_s(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    rollout_of(run, b"film", "ab" * 32)
    server = {"git_commit": "5e7ve7", "cpu": "another CPU", "gpus": ["H", "H", "H"], "python": "3.12.9"}
    loop, _ = closed_loop_of(run, policy={"weights_digest": "ab" * 32, "server": server})
    for text in ("server: GPU", "3 x H", "5e7ve7", "another CPU", "2 x G", "a CPU"):
        assert text in loop


def test_every_machine_that_answered_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    rollout_of(run, b"film", "ab" * 32)
    last = {"git_commit": "5e7ve7", "cpu": "last CPU", "gpus": [], "python": "3.12.9"}
    servers = [
        {"episodes": 3, **last, "cpu": "first CPU"},
        {"episodes": 1, **last},
        {"episodes": 0, "cpu": "x"},
    ]
    policy = {"weights_digest": "ab" * 32, "server": last, "servers": servers}
    loop, _ = closed_loop_of(run, policy=policy)
    for text in ("server 1 of 2, 3 episodes: CPU", "first CPU", "server 2 of 2, 1 episode: CPU", "last CPU"):
        assert text in loop


def closed_loop_of(run: Path, **changes: Any) -> tuple[str, str]:
    """Section and headline of a page whose rollout says ``changes`` of settings and policy."""
    file = run / "rollout" / "results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    page = write_report(run).read_text()
    return page[page.index('id="closed-loop"') : page.index('id="training"')], page[
        : page.index('id="closed-loop"')
    ]


def test_a_success_of_others_is_not_this_run_s(tmp_path: Path) -> None:
    """A killed run has no last checkpoint to compare with, and a rollout may be anybody's."""
    run = run_of(tmp_path / "run")
    rollout_of(run, b"film", "cd" * 32)
    loop, head = closed_loop_of(run)
    said = (
        f"Not this run&#x27;s policy: other weights (runs/x/checkpoints/steps_5, SHA-256 {'cd' * 6}) acted."
    )
    assert said in loop
    assert "success (not by this run&#x27;s policy), 0 of 1" in head
    for settings, who in (
        ({"replay": "my/data"}, "the recorded actions of my/data"),
        ({"policy": "expert", "address": ""}, "scripted expert"),
    ):
        loop, _ = closed_loop_of(run, settings=settings, policy={})
        assert f"{who} acted." in loop


def test_an_earlier_checkpoint_is_this_run_s_wherever_it_was_served(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", checkpoint={"path": "checkpoints/steps_9", "weights_digest": "ab" * 32})
    checkpoint = run / "checkpoints" / "steps_5"
    tiny_policy().save(checkpoint, step=5)
    rollout_of(run, b"film", sha256_of(weights_file(checkpoint)))
    loop, head = closed_loop_of(run)
    assert "Not this run" not in loop
    assert "not by this" not in head
    assert "but of an earlier checkpoint of it" in loop


def test_weights_are_read_once_for_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run", checkpoint={"path": "checkpoints/steps_9", "weights_digest": "ab" * 32})
    checkpoint = run / "checkpoints" / "steps_5"
    tiny_policy().save(checkpoint, step=5)
    read: list[Path] = []
    monkeypatch.setattr(_made_with, "sha256_of", lambda file: read.append(file) or "ef" * 32)
    rollout_of(run, b"film", "ef" * 32)
    loop, _ = closed_loop_of(run)
    assert "but of an earlier checkpoint of it" in loop
    assert read == [weights_file(checkpoint)]
    weights_file(checkpoint).write_bytes(b"others")
    closed_loop_of(run)
    assert len(read) == 2


def test_weights_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run")
    checkpoint = run / "checkpoints" / "steps_5"
    tiny_policy().save(checkpoint, step=5)
    rollout_of(run, b"film", "cd" * 32)

    def denied(file: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(_made_with, "sha256_of", denied)
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read \(Permission denied\)"):
        write_report(run)


def test_matplotlib_waits_until_something_is_drawn() -> None:
    # Every run and every program of ablate imports these when it starts.
    code = "import sys, vla_train.report, vla_train.ablate.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
