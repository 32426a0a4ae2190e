"""``vla-rollout --replay``: recorded actions from recorded starts, in the simulator of the tests."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from vla_core.envs.recorded import FILE, Recorded, RecordedEpisode, write
from vla_serve.rollout_cli import main
from vla_serve.testing import ToyEnv, ToyEnvConfig


def played(task: str, seed: int, speed: float = 1.0) -> RecordedEpisode:
    """The toy driven to its side until it is there."""
    env, actions, success = ToyEnv(ToyEnvConfig(task)), [], False
    env.reset(seed)
    while not success:
        actions.append(np.array([-speed if task == "left" else speed], np.float32))
        success = env.step(actions[-1]).success
    return RecordedEpisode(task, seed, True, np.stack(actions), np.zeros((len(actions), 1), np.float32))


@pytest.fixture
def data(tmp_path):
    """Seeds with gaps, as where the recorder left failures out, and not the same for both tasks."""
    (tmp_path / "data" / "meta").mkdir(parents=True)
    episodes = [played("left", 3), played("right", 5), played("left", 7)]
    write(tmp_path / "data" / "meta", Recorded("toy", {"max_steps": 40}, episodes))
    return tmp_path / "data"


def run(data, out, *more):
    return main(["--replay", str(data), "--out", str(out), "--videos", "none", "--workers", "2", *more])


def test_every_episode_succeeds_again_from_its_own_start(data, toy, tmp_path, capsys):
    assert run(data, tmp_path / "out") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(e["task"], e["seed"], e["success"]) for e in results["episodes"]] == [
        ("left", 3, True),
        ("left", 7, True),
        ("right", 5, True),
    ]
    assert [e["steps"] for e in results["episodes"]] == [
        len(played(*key).actions) for key in (("left", 3), ("left", 7), ("right", 5))
    ]
    assert all(e["state_deviation"] == 0.0 for e in results["episodes"])
    assert results["complete"]
    assert results["settings"]["env_options"] == {"max_steps": 40}
    assert math.isclose(results["suite"]["mean"], 1.0)
    printed = capsys.readouterr().out
    assert "3 of 3 episodes ended as recorded; state off the recorded one by at most 0" in printed
    assert "from the recorded starts" in printed


def test_a_simulator_that_differs_is_told(data, toy, tmp_path, capsys):
    # The state of the toy is always 0: a record of another one differs by as much.
    half = played("left", 3)
    other = RecordedEpisode("left", 3, True, half.actions / 2, half.states + 0.25)
    write(data / "meta", Recorded("toy", {}, [other]))
    assert run(data, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "0 of 1 episodes ended as recorded; state off the recorded one by at most 0.25" in printed
    assert "not the simulator that recorded" in printed


def test_one_task_and_fewer_episodes(data, toy, tmp_path):
    assert run(data, tmp_path / "out", "--task", "left", "--episodes", "1") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(e["task"], e["seed"]) for e in results["episodes"]] == [("left", 3)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--task", "lift"], "--task: 'lift' is not in"),
        (["--policy", "expert"], "replay: recorded actions need no policy"),
        (["--instruction", "go"], "instruction: recorded actions follow nothing"),
        (["--rtc", "--delay_steps", "1"], "delay_steps: recorded actions follow nothing"),
    ],
)
def test_what_a_replay_cannot_do(data, toy, tmp_path, capsys, words, says):
    assert run(data, tmp_path / "out", *words) == 2
    assert says in capsys.readouterr().err


def test_data_without_starts(tmp_path, toy, capsys):
    assert run(tmp_path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "the starts of its episodes are not stored (no vla_replay.npz)" in error
    assert len(error.splitlines()) == 1
    (tmp_path / FILE).write_bytes(b"PK half a file")
    assert run(tmp_path, tmp_path / "out") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_without_a_replay_simulator_and_task_must_be_said(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), "--task", "left"]) == 2
    assert "--env: say which" in capsys.readouterr().err


def test_without_a_task_those_that_there_are_are_named(toy, tmp_path, capsys):
    assert main(["--env", "toy", "--policy", "expert", "--out", str(tmp_path)]) == 2
    assert "--task: say which of toy: left, right (see" in capsys.readouterr().err
    assert main(["--policy", "expert", "--out", str(tmp_path)]) == 2
    assert "metaworld, " in capsys.readouterr().err
