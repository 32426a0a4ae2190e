from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from vla_core.errors import ConfigError, UserError
from vla_serve import (
    ControlLoop,
    HandshakeError,
    PolicyClient,
    PolicyServer,
    PolicyUnavailable,
    RolloutSettings,
    rollout,
)
from vla_serve.rates import wilson
from vla_serve.rollout_cli import main
from vla_serve.rollouts.results import table
from vla_serve.rollouts.worker import EpisodeJob, Setup, run_episode
from vla_serve.testing import ToyEnv, ToyEnvConfig, ToyPolicy


@pytest.fixture(scope="module")
def address():
    with PolicyServer(ToyPolicy()) as server:
        yield server.address


def settings(address, **changes):
    base = RolloutSettings(address=address, env="toy", tasks=("left", "right"), episodes=3, videos="none")
    return replace(base, **changes)


def episodes(results):
    """What must not depend on workers or time."""
    return [(e["task"], e["seed"], e["success"], e["steps"], e["instruction"]) for e in results["episodes"]]


def test_the_same_episodes_whatever_the_number_of_workers(address, toy, tmp_path):
    one = rollout(settings(address, tasks=("left",), episodes=4, workers=1), tmp_path / "one")
    two = rollout(settings(address, tasks=("left",), episodes=4, workers=2), tmp_path / "two")
    assert episodes(one) == episodes(two)
    assert [e["seed"] for e in one["episodes"]] == [10_000, 10_001, 10_002, 10_003]
    assert one["complete"]
    assert one["total"]["success_rate"] == 1.0
    assert json.loads((tmp_path / "one" / "results.json").read_text()) == one


def test_results_hold_settings_aggregates_and_latencies(address, toy, tmp_path):
    told = []
    results = rollout(settings(address, execute_steps=3), tmp_path, on_episode=lambda *a: told.append(a[1:]))
    assert results["schema"] == 2
    assert told == [(i, 6) for i in range(1, 7)]
    assert results["settings"]["seed"] == 10_000
    assert results["settings"]["executed_steps"] == 3
    assert results["policy"]["policies"] == [{"name": "default", "framework": "Toy"}]
    assert [(e["task"], e["seed"]) for e in results["episodes"]] == [
        (task, seed) for task in ("left", "right") for seed in (10_000, 10_001, 10_002)
    ]
    left = results["tasks"][0]
    assert (left["task"], left["episodes"], left["successes"], left["failed"]) == ("left", 3, 3, 0)
    assert left["interval"] == list(wilson(3, 3))
    assert left["achieved"] == {"left": 3}
    requests = sum(math.ceil(e["steps"] / 3) for e in results["episodes"] if e["task"] == "left")
    assert left["latency_ms"]["requests"] == requests
    assert 0 < left["latency_ms"]["p50"] <= left["latency_ms"]["p99"]
    for episode in results["episodes"]:
        assert episode["latency_ms_mean"] == pytest.approx(
            sum(episode["latencies_ms"]) / len(episode["latencies_ms"]), abs=1e-3
        )
        assert episode["achieved"] == [episode["task"]]
    printed = table(results)
    assert printed.splitlines()[1].startswith("left   3/3      100 %  44 - 100 %")
    assert printed.splitlines()[-1].startswith("all    6/6")


def test_half_of_the_chunk_is_executed_by_default(address, toy, tmp_path):
    results = rollout(settings(address, episodes=1, tasks=("left",)), tmp_path)
    assert results["settings"]["executed_steps"] == 2
    assert results["settings"]["execute_steps"] is None
    assert results["total"]["latency_ms"]["requests"] == math.ceil(results["episodes"][0]["steps"] / 2)


def test_with_the_other_tasks_words_the_other_task_is_achieved(address, toy, tmp_path):
    swapped = settings(address, tasks=("left",), instruction_from="right")
    results = rollout(swapped, tmp_path)
    own = rollout(settings(address, tasks=("right",)), tmp_path / "own")
    assert results["tasks"][0]["success_rate"] == 0.0
    assert results["tasks"][0]["achieved"] == {"right": 3}
    # The same words in the same start states, and an episode ends when either task is done.
    assert [(e["seed"], e["instruction"], e["steps"]) for e in results["episodes"]] == [
        (e["seed"], e["instruction"], e["steps"]) for e in own["episodes"]
    ]


def test_an_instruction_of_ones_own(address, toy, tmp_path):
    results = rollout(settings(address, tasks=("left",), instruction="now go right"), tmp_path)
    assert {e["instruction"] for e in results["episodes"]} == {"now go right"}
    assert results["total"]["successes"] == 0


def test_an_episode_without_success_is_truncated(address, toy, tmp_path):
    results = rollout(settings(address, tasks=("left",), env_options={"max_steps": 3}, episodes=1), tmp_path)
    assert [(e["success"], e["steps"], e["error"]) for e in results["episodes"]] == [(False, 3, None)]
    assert results["complete"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("crash_seed", "the simulator process died (exit code 13)"),
        (
            "fail_seed",
            "simulator 'toy', task 'left', seed 10001: step raised RuntimeError: the toy was told to ",
        ),
    ],
)
def test_a_simulator_that_dies_or_raises_costs_one_episode(address, toy, tmp_path, option, words):
    results = rollout(settings(address, tasks=("left",), workers=1, env_options={option: 10_001}), tmp_path)
    broken = [e for e in results["episodes"] if e["error"] is not None]
    assert [(e["task"], e["seed"], e["success"]) for e in broken] == [("left", 10_001, None)]
    assert broken[0]["error"].startswith(words)
    trace = tmp_path / "errors" / "left_10001.txt"
    assert trace.exists() == (option == "fail_seed")
    if trace.exists():
        assert f"(traceback: {trace})" in broken[0]["error"]
        assert trace.read_text().startswith("Traceback")
        assert trace.read_text().rstrip().endswith("the toy was told to fail in episode 10001")
    assert not results["complete"]
    assert results["total"]["episodes"] == 2
    assert results["total"]["failed"] == 1
    assert results["total"]["success_rate"] == 1.0
    assert json.loads((tmp_path / "results.json").read_text())["total"] == results["total"]


def test_simulators_that_never_start_end_the_rollout(address, tmp_path, monkeypatch):
    # Spawned processes import the class by name.
    path = tmp_path / "toy_that_never_starts.py"
    path.write_text(
        "from vla_serve.testing import ToyEnv\n"
        "class Unbuildable(ToyEnv):\n"
        "    def __init__(self, config):\n"
        "        raise RuntimeError('no display')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("toy_that_never_starts")
    results = rollout(
        settings(address, episodes=10, workers=3), tmp_path / "out", env_class=module.Unbuildable
    )
    assert len(results["episodes"]) == 20
    assert all(e["error"] for e in results["episodes"])
    said = "simulator 'toy', task 'left': making it raised RuntimeError: no display (traceback: "
    assert any(e["error"].startswith(said) for e in results["episodes"])
    assert sum("not run: 3 simulator processes died" in e["error"] for e in results["episodes"]) >= 16
    assert results["total"]["success_rate"] is None
    assert "-" in table(results)


def test_videos_of_failures_up_to_a_number(address, toy, tmp_path):
    av = pytest.importorskip("av", reason="needs the extra vla-serve[video]")
    changes = {"env_options": {"max_steps": 4, "image_size": 33}, "tasks": ("left",), "episodes": 4}
    with PolicyServer(ToyPolicy(image_size=33)) as server:
        results = rollout(
            settings(server.address, **changes, videos="failures", max_failures_videos=2, workers=1), tmp_path
        )
    written = [e["video"] for e in results["episodes"] if e["video"]]
    assert written == ["left_10000_failure.mp4", "left_10001_failure.mp4"]
    assert sorted(p.name for p in (tmp_path / "videos").iterdir()) == written
    page = (tmp_path / "report.html").read_text()
    assert [page.count(f'preload="none" src="videos/{name}"') for name in written] == [1, 1]
    assert [(tmp_path / p.split('"')[0]).is_file() for p in page.split('poster="')[1:]] == [True, True]
    with av.open(str(tmp_path / "videos" / written[0])) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 10
    assert len(frames) == 5  # the start and four steps
    assert frames[0].shape == (34, 34, 3)


def test_videos_of_all(address, toy, tmp_path):
    pytest.importorskip("av", reason="needs the extra vla-serve[video]")
    results = rollout(settings(address, tasks=("left",), episodes=1, videos="all"), tmp_path)
    assert [e["video"] for e in results["episodes"]] == ["left_10000_success.mp4"]


def test_specs_that_differ_from_the_policys_end_the_rollout(address, toy, tmp_path):
    with pytest.raises(
        UserError, match=r"observation\.cameras\[top\]\.height: the policy has 32, the client has 16"
    ):
        rollout(settings(address, env_options={"image_size": 16}), tmp_path)
    assert issubclass(HandshakeError, UserError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env": "tyo"}, "no 'tyo' in vla.envs"),
        ({"tasks": ("lefft",)}, "did you mean 'left'"),
        ({"instruction_from": "rihgt"}, "did you mean 'right'"),
        ({"env_options": {"image_sise": 3}}, "image_size"),
        ({"env_options": {"image_size": "big"}}, "env.image_size"),
        ({"env_options": {"task": "left"}}, "--task"),
    ],
)
def test_mistakes_are_found_before_anything_runs(address, toy, tmp_path, changes, words):
    with pytest.raises(UserError) as caught:
        rollout(settings(address, **changes), tmp_path)
    assert words in str(caught.value)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"episodes": 0},
        {"workers": 0},
        {"seed": -1},
        {"execute_steps": 0},
        {"delay_steps": -1},
        {"rtc": True},
        {"tasks": ()},
        {"tasks": ("left", "left")},
        {"videos": "some"},
        {"instruction": "a", "instruction_from": "b"},
    ],
)
def test_settings_are_checked(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        settings("localhost:1", **changes)


def test_no_server(toy, tmp_path):
    with pytest.raises(PolicyUnavailable):
        rollout(settings("127.0.0.1:1"), tmp_path)


def test_the_program(call, toy, tmp_path, capsys):
    assert main([*call, "--out", str(tmp_path), "--env.max_steps", "20", "--env.image_size=32"]) == 0
    printed = capsys.readouterr().out
    assert "left  2/2      100 %" in printed
    assert "[2/2] left seed" in printed
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["settings"]["env_options"] == {"max_steps": 20, "image_size": 32}


def test_the_program_fails_when_an_episode_does(call, toy, tmp_path, capfd):
    assert main([*call, "--out", str(tmp_path), "--env.crash_seed", "10001"]) == 1
    assert "left seed 10001: the simulator process died (exit code 13)" in capfd.readouterr().err
    assert main([*call, "--out", str(tmp_path / "raises"), "--env.fail_seed", "10001"]) == 1
    captured = capfd.readouterr()
    assert (
        "left seed 10001: simulator 'toy', task 'left', seed 10001: step raised RuntimeError" in captured.err
    )
    assert "Traceback" not in captured.out + captured.err  # of the simulator's process too


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        (["--env.max_stepz", "3"], 2, "max_steps"),
        (["--env.max_steps"], 2, "--env.max_steps: a value is missing"),
        (["--out", "/proc/none"], 2, "out: /proc/none cannot be written"),
        (["--out", "/etc/passwd"], 2, "out: /etc/passwd cannot be written"),
        (["nonsense"], 2, "unknown argument 'nonsense'"),
        (["--address", "127.0.0.1:1"], 1, "is vla-serve running there"),
    ],
)
def test_the_program_says_mistakes_in_one_line(call, toy, tmp_path, capsys, extra, code, words):
    assert main([*call, "--out", str(tmp_path), *extra]) == code
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Published values (Newcombe 1998, table I, method 3, and the closed form at the ends).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_without_trials():
    assert wilson(0, 0) == (0.0, 1.0)


def test_options_of_a_simulator_keep_their_file_free_names(toy):
    with pytest.raises(ConfigError, match="env"):
        rollout(settings("127.0.0.1:1", env_options={"nope": 1}), "unused")


def test_metaworld_through_the_wire(tmp_path):
    pytest.importorskip("metaworld", reason="needs the extra vla-serve[metaworld]")
    import numpy as np
    from vla_core.envs.metaworld import MetaWorldConfig, MetaWorldEnv
    from vla_core.specs import RobotSpec
    from vla_core.types import ActionChunk

    env = MetaWorldEnv(MetaWorldConfig(image_size=32))
    action = replace(env.action_spec, horizon=4)
    spec = RobotSpec(env.observation_spec, action, embodiment="sawyer")
    env.close()

    class Still:
        framework = "Still"
        specs = {"sawyer": spec}  # noqa: RUF012

        def act(self, observations, seeds, steps=None):
            return [ActionChunk(np.zeros((4, 4), np.float32), action) for _ in observations]

    with PolicyServer(Still()) as server:
        results = rollout(
            settings(
                server.address,
                env="metaworld",
                tasks=("faucet-open",),
                episodes=1,
                workers=1,
                env_options={"image_size": 32, "max_steps": 6},
            ),
            tmp_path,
        )
    episode = results["episodes"][0]
    assert (episode["success"], episode["steps"], episode["error"]) == (False, 6, None)
    assert "faucet" in episode["instruction"] or "tap" in episode["instruction"]


class Changing(ToyEnv):
    """Says the other task's words from the second step on, and keeps what it was told to do."""

    def reset(self, seed):
        self.actions = []
        return replace(super().reset(seed), instruction="go left")

    def step(self, action):
        self.actions.append(float(action[0]))
        result = super().step(action)
        said = "go left" if len(self.actions) < 2 else "go right"
        return replace(result, observation=replace(result.observation, instruction=said))


def test_another_instruction_on_the_way_drops_the_chunk(address, tmp_path):
    env = Changing(ToyEnvConfig(task="right", max_steps=30))
    setup = Setup(
        env_class=Changing, env_config=None, env="changing", task="right", address=address, policy="",
        embodiment="", encoding="raw", timeout_s=30.0, execute_steps=8, rtc=False, delay_steps=None,
        stop_at=None, hide=None, hold_steps=0, ensembling=None, video_dir=tmp_path, thumbnail_dir=tmp_path,
        error_dir=tmp_path,
    )  # fmt: skip
    with (
        PolicyClient(address) as client,
        ControlLoop(client, rtc=False, execute_steps=4, delay_steps=0) as loop,
    ):
        done = run_episode(env, loop, setup, EpisodeJob(0, None, "none"))
    # Of the chunk of four steps to the left two are executed.
    assert [action > 0 for action in env.actions[:4]] == [False, False, True, True]
    assert done.episode.success
    assert len(done.latencies_ms) >= 2
