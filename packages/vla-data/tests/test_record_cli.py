"""vla-data record and inspect, end to end with the simulator at a tiny size; and wrong input."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from vla_data import LeRobotConfig, LeRobotSource
from vla_data.cli import main

TASKS = ("--env", "metaworld", "--task", "drawer-close", "--task", "drawer-open")
TINY = ("--env.image_size", "32", "--env.cameras=[topview]")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    pytest.importorskip("metaworld")
    out = tmp_path_factory.mktemp("recorded") / "drawers"
    options = (*TINY, "--env.intrinsics", "true", "--env.extrinsics=true", "--env.depth", "true")
    arguments = ["record", *TASKS, "--episodes", "1", "--out", str(out), "--seed", "3", "--noise", "0.2"]
    assert main([*arguments, *options]) == 0
    return out


def test_recorded_episodes_are_what_the_simulator_shows(recorded):
    from vla_core.envs.metaworld import MetaWorldConfig, MetaWorldEnv

    source = LeRobotSource(LeRobotConfig(str(recorded)), horizon=8)
    assert list(source.lengths()) == [0, 1]
    assert source.instruction(0) != source.instruction(1)
    assert [p.name for p in recorded.parent.iterdir()] == ["drawers"], "no temporary directory is left"
    config = MetaWorldConfig(
        task="drawer-close", image_size=32, cameras=("topview",), depth=True, intrinsics=True, extrinsics=True
    )
    env = MetaWorldEnv(config)
    assert env.observation_spec == source.spec.observation
    assert env.action_spec.groups == source.spec.action.groups
    first, sample = env.reset(3), source[0]
    assert sample.observation.instruction == first.instruction
    assert sample.observation.embodiment == first.embodiment == "sawyer"
    assert np.array_equal(sample.observation.state, first.state)
    assert np.array_equal(sample.actions[0], env.expert_action())
    for kind in ("depth", "intrinsics", "extrinsics"):
        assert np.array_equal(getattr(sample.observation, kind)["topview"], getattr(first, kind)["topview"])
    difference = np.abs(sample.observation.images["topview"].astype(int) - first.images["topview"])
    assert difference.mean() < 12
    env.close()


def test_noise_is_executed_but_not_recorded(recorded):
    """Replaying the recorded actions leads elsewhere; the expert's are recorded at every state."""
    from vla_core.envs.metaworld import MetaWorldConfig, MetaWorldEnv

    source = LeRobotSource(LeRobotConfig(str(recorded)), horizon=1, episodes=[0])
    env = MetaWorldEnv(MetaWorldConfig(task="drawer-close", image_size=32, cameras=("topview",)))
    env.reset(3)
    replayed = [env.step(a).observation.state for a in source.rows("action")[:10]]
    assert not np.allclose(replayed, source.rows("state")[1:11], atol=1e-4)
    assert np.abs(source.rows("action")).max() <= 1
    env.close()


def test_the_executed_actions_lead_through_the_recorded_states(recorded):
    """What ``vla-rollout --replay`` plays: starts and actions with their noise, of every episode."""
    from vla_core.envs.metaworld import MetaWorldConfig, MetaWorldEnv
    from vla_core.envs.recorded import read

    happened, source = read(recorded), LeRobotSource(LeRobotConfig(str(recorded)), horizon=1, episodes=[0])
    assert happened.env == "metaworld"
    assert [(e.task, e.seed, e.success) for e in happened.episodes] == [
        ("drawer-close", 3, True),
        ("drawer-open", 3, True),
    ]
    first = happened.episodes[0]
    assert np.array_equal(first.states, source.rows("state"))
    env = MetaWorldEnv(MetaWorldConfig(task="drawer-close", image_size=32, cameras=("topview",)))
    env.reset(first.seed)
    results = [env.step(action) for action in first.actions]
    replayed = [result.observation.state for result in results[:-1]]
    assert np.allclose(replayed, first.states[1:], atol=1e-6)
    assert results[-1].success
    env.close()


def test_provenance(recorded):
    spec = json.loads((recorded / "meta" / "vla_spec.json").read_text())
    assert spec["provenance"]["seed"] == 3
    assert spec["provenance"]["tasks"] == ["drawer-close", "drawer-open"]
    assert spec["provenance"]["env_options"]["image_size"] == 32


def test_existing_directory_is_refused_and_untouched(recorded, capsys):
    assert main(["record", *TASKS, "--episodes", "1", "--out", str(recorded)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (recorded / "meta" / "info.json").is_file()


def test_inspect_prints_and_plots(recorded, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "pictures" / "episode.png"
    assert main(["inspect", str(recorded), "--episode", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for part in (
        "episodes  2",
        "observation.images.topview",
        "end_effector_position[x] (cm)",
        "instructions (2)",
    ):
        assert part in printed
    assert "gripper_effort" in printed.split("warnings")[0]
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.stat().st_size > 20_000


@pytest.mark.slow
def test_two_workers_record_the_same_as_one(tmp_path):
    pytest.importorskip("metaworld")
    for workers in ("1", "2"):
        arguments = ["record", *TASKS, "--episodes", "2", "--out", str(tmp_path / workers), "--noise", "0.3"]
        assert main([*arguments, "--workers", workers, *TINY]) == 0
    one, two = (LeRobotSource(LeRobotConfig(str(tmp_path / w)), 2) for w in ("1", "2"))
    assert len(one) == len(two)
    assert np.array_equal(one.rows("action"), two.rows("action"))
    assert np.array_equal(one.rows("state"), two.rows("state"))
    for i in range(0, len(one), 17):
        assert np.array_equal(one[i].observation.images["topview"], two[i].observation.images["topview"])


@pytest.mark.slow
def test_too_many_failures_stop_the_recording(tmp_path, capsys):
    pytest.importorskip("metaworld")
    arguments = ["record", *TASKS[:4], "--episodes", "1", "--out", str(tmp_path / "x"), *TINY]
    assert main([*arguments, "--env.max_steps", "2"]) == 2
    assert re.search(r"expert of 'drawer-close' failed on 13", capsys.readouterr().err)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


NONE_THERE = "no such dataset directory"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["record", *TASKS[:2], "--task", "faucet-opn", "--episodes", "1"], "did you mean 'faucet-open'"),
        (["record", "--env", "metawrld", "--task", "x", "--episodes", "1"], "did you mean 'metaworld'"),
        (["record", *TASKS, "--episodes", "0"], "--episodes"),
        (["record", *TASKS, "--episodes", "1", "--workers", "0"], "--workers"),
        (["record", *TASKS, "--episodes", "1", "--noise", "-1"], "--noise"),
        (["record", *TASKS, "--episodes", "1", "--noise", "nan"], "--noise"),
        (["record", *TASKS, "--episodes", "1", "--seed", "-1"], "--seed"),
        (["record", *TASKS, "--episodes", "1", "--env.imge_size", "64"], "did you mean 'image_size'"),
        (["record", *TASKS, "--episodes", "1", "--env.image_size", "big"], "env.image_size"),
        (["record", *TASKS, "--episodes", "1", "--env.image_size"], "value is missing"),
        (["record", *TASKS, "--episodes", "1", "--env.task", "x"], "--task"),
        (["record", *TASKS[:2], "--task", "reach", "--task", "reach", "--episodes", "1"], "twice"),
        (["inspect", "nowhere"], NONE_THERE),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, says, tmp_path, capsys):
    if arguments[0] == "record":
        pytest.importorskip("metaworld")
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert error.startswith("vla-data ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [[], ["recrd"], ["record"], ["record", "--episodes", "many"], ["inspect"]]
)
def test_argument_errors_are_one_line_too(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--help" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("record --env metaworld --verbose", "vla-data record: unknown option --verbose;"),
        ("record --evn metaworld", "vla-data record: unknown option --evn (did you mean --env?)"),
        ("inspect DIR --fsp 3", "vla-data inspect: unknown option --fsp (did you mean --fps?)"),
        ("cache DIR OUT --hieght 64", "vla-data cache: unknown option --hieght (did you mean --height?)"),
        ("convert DIR OUT --video", "vla-data convert: unknown option --video (did you mean --video-mb?)"),
        ("view DIR --eppisode 1", "vla-data view: unknown option --eppisode (did you mean --episode?)"),
    ],
)
def test_a_misspelt_option_is_named_before_what_is_missing(words, said, capsys):
    with pytest.raises(SystemExit) as error:
        main(words.split())
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_inspect_errors(toy, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["inspect", toy.path, "--out", str(tmp_path / "file" / "x.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["inspect", toy.path, "--episode", "9"]) == 2
    assert "no episode 9" in capsys.readouterr().err
    assert main(["inspect", toy.path, "--out", str(tmp_path / "x.gif")]) == 2
    assert ".png" in capsys.readouterr().err


def test_help_is_readable(capsys):
    for arguments in (["--help"], ["record", "--help"], ["inspect", "--help"]):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 0
    printed = capsys.readouterr().out
    assert "--env.KEY VALUE" in printed
    assert "--noise" in printed


def test_readme_example_runs(toy, monkeypatch):
    readme = Path(__file__).parents[1] / "README.md"
    if not readme.is_file():
        pytest.skip("installed without its README")
    example = re.search(r"```python\n(.*?)```", readme.read_text(), re.S)
    exec(example.group(1).replace("examples/data/metaworld_faucet", toy.path), {})


def test_recorded_arrays_hold_the_very_pixels(tmp_path):
    pytest.importorskip("metaworld")
    from vla_core.envs.metaworld import MetaWorldConfig, MetaWorldEnv
    from vla_data import ArraysConfig, ArraysSource

    out = tmp_path / "exact"
    arguments = ["record", *TASKS, "--episodes", "1", "--out", str(out), "--seed", "3", "--format", "arrays"]
    assert main([*arguments, *TINY, "--env.depth", "true", "--env.camera_orbit", "[5, 10]"]) == 0
    source = ArraysSource(ArraysConfig(str(out)), horizon=4)
    env = MetaWorldEnv(
        MetaWorldConfig(
            task="drawer-close", image_size=32, cameras=("topview",), depth=True, camera_orbit=(5.0, 10.0)
        )
    )
    first = env.reset(3)
    for kind in ("images", "depth"):
        recorded_view = getattr(source[0].observation, kind)["topview"]
        assert np.array_equal(recorded_view, getattr(first, kind)["topview"])
    env.close()


def test_lerobots_format_without_lerobot_is_one_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("metaworld")
    monkeypatch.delitem(sys.modules, "vla_data._lerobot_writer", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    arguments = ["record", *TASKS, *TINY, "--episodes", "1", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(
        "vla-data record: --format lerobot needs the package 'datasets': pip install 'vla-data["
    )
